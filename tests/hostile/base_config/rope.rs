//! RoPE in `config.json`.

use ptplus::error::Code;

use super::with;
use crate::case::{Case, accepted, refused};

pub fn cases() -> Vec<Case> {
    use Code::*;
    let llama3 = |changed: &str, value: &str| {
        let fields = [
            ("rope_type", "\"llama3\""),
            ("factor", "8.0"),
            ("low_freq_factor", "1.0"),
            ("high_freq_factor", "4.0"),
            ("original_max_position_embeddings", "64"),
        ];
        let fields: Vec<String> =
            fields.iter().map(|(k, v)| format!("\"{k}\":{}", if *k == changed { value } else { v })).collect();
        with("rope_scaling", Some(&format!("{{{}}}", fields.join(","))))
    };
    let mut cases = vec![
        accepted("rope llama3", llama3("", "")),
        refused("rope low factor above high", llama3("low_freq_factor", "5"), ConfigField),
    ];
    for field in ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"] {
        for value in ["0", "-1", "null", "\"1\"", "{}"] {
            let nested = value == "{}";
            // An object stands for one set of parameters per kind of layer.
            if field == "original_max_position_embeddings" && value == "null" {
                continue; // then max_position_embeddings counts
            }
            cases.push(refused(
                format!("rope {field} {value}"),
                llama3(field, value),
                if nested { ConfigUnsupported } else { ConfigField },
            ));
        }
    }
    for (value, code) in [
        (r#"{"rope_type":"yarn"}"#, ConfigField),
        (r#"{"rope_type":"yarn","factor":-2}"#, ConfigField),
        (r#"{"rope_type":"yarn","factor":1e300}"#, ConfigField),
        (r#"{"rope_type":"yarn","factor":2,"beta_fast":-1}"#, ConfigField),
        (r#"{"rope_type":"yarn","factor":2,"beta_slow":"1"}"#, ConfigField),
        (r#"{"rope_type":"yarn","factor":2,"attention_factor":0}"#, ConfigField),
        (r#"{"rope_type":"yarn","factor":2,"attention_factor":1e300}"#, ConfigField),
        (r#"{"rope_type":"yarn","factor":4,"mscale":1,"mscale_all_dim":-9}"#, ConfigField),
        (r#"{"rope_type":"yarn","factor":2,"truncate":1}"#, ConfigField),
        (r#"{"rope_type":"yarn","factor":2,"rope_theta":1}"#, ConfigField),
        (r#"{"rope_type":"yarn","factor":2,"original_max_position_embeddings":0}"#, ConfigField),
        (r#"{"rope_type":"dynamic"}"#, ConfigField),
        (r#"{"rope_type":"dynamic","factor":1e300}"#, ConfigField),
        (r#"{"rope_type":"longrope"}"#, ConfigField),
        (r#"{"rope_type":"longrope","short_factor":1,"long_factor":[]}"#, ConfigField),
        (r#"{"rope_type":"longrope","short_factor":[],"long_factor":[]}"#, ConfigField),
        (r#"{"rope_type":"longrope","short_factor":[{}],"long_factor":[0]}"#, ConfigField),
        (r#"{"rope_type":"su","factor":2}"#, ConfigUnsupported),
        (r#"{"rope_type":"evil.module"}"#, ConfigUnsupported),
        (r#"{"rope_type":null}"#, ConfigField),
        (r#"{"rope_type":1}"#, ConfigField),
        (r#"{"rope_type":"linear"}"#, ConfigField),
        (r#"{"rope_type":"linear","factor":0}"#, ConfigField),
        (r#"{"rope_type":"linear","factor":-2}"#, ConfigField),
        (r#"{"rope_type":"linear","factor":1e400}"#, JsonSyntax),
        (r#"{"rope_type":"default","rope_theta":0}"#, ConfigField),
        (r#"{"full_attention":{"rope_type":"default"}}"#, ConfigUnsupported),
        ("[]", ConfigField),
        ("1", ConfigField),
    ] {
        cases.push(refused(format!("rope_scaling {value}"), with("rope_scaling", Some(value)), code));
        cases.push(refused(format!("rope_parameters {value}"), with("rope_parameters", Some(value)), code));
    }
    let both = with("rope_theta", Some("5")).replacen('{', r#"{"rope_parameters":{"rope_theta":7},"#, 1);
    cases.push(refused("two values of rope_theta", both, ConfigField));
    cases
}

/// The same thing said by several names, of which readers take one or the other.
pub fn stated_twice() -> Vec<Case> {
    use Code::*;
    let scaling = |value: &str| with("rope_scaling", Some(value));
    let beside = |parameters: &str| {
        scaling(r#"{"rope_type":"linear","factor":2.0}"#).replacen(
            '{',
            &format!("{{\"rope_theta\":5e5,\"rope_parameters\":{parameters},"),
            1,
        )
    };
    vec![
        accepted("rope_type and type that agree", scaling(r#"{"rope_type":"linear","type":"linear","factor":2}"#)),
        refused(
            "rope_type default, type linear",
            scaling(r#"{"rope_type":"default","type":"linear","factor":2}"#),
            ConfigField,
        ),
        refused(
            "rope_type linear, type yarn",
            scaling(r#"{"rope_type":"linear","type":"yarn","factor":2}"#),
            ConfigField,
        ),
        refused("rope_type linear, type 5", scaling(r#"{"rope_type":"linear","type":5,"factor":2}"#), ConfigField),
        refused("a factor without a type", scaling(r#"{"factor":2.0}"#), ConfigField),
        refused("llama3 without a type", scaling(r#"{"low_freq_factor":1.0}"#), ConfigField),
        accepted("no type and nothing to scale", with("rope_parameters", Some(r#"{"rope_theta":7.0}"#))),
        accepted("both objects, alike", beside(r#"{"rope_type":"linear","factor":2,"rope_theta":500000.0}"#)),
        accepted("rope_parameters null", beside("null")),
        accepted("rope_parameters empty", beside("{}")),
        refused("rope_parameters of another kind", beside(r#"{"rope_type":"default"}"#), ConfigField),
        refused("rope_parameters of another factor", beside(r#"{"rope_type":"linear","factor":4}"#), ConfigField),
        refused("rope_parameters of yarn", beside(r#"{"rope_type":"yarn","factor":2}"#), ConfigField),
        refused(
            "rope_parameters of another theta",
            beside(r#"{"rope_type":"linear","factor":2,"rope_theta":1e4}"#),
            ConfigField,
        ),
        refused("rope_parameters as number", beside("5"), ConfigField),
        refused(
            "a theta that only one of both has",
            scaling(r#"{"rope_type":"linear","factor":2}"#).replacen(
                '{',
                r#"{"rope_parameters":{"rope_type":"linear","factor":2,"rope_theta":5e5},"#,
                1,
            ),
            ConfigField,
        ),
    ]
}
