//! How tokens are to be chosen.

use serde_json::{Map, Value as Json};

use super::{agreed, wrong};
use crate::error::Result;
use crate::format::gguf::Value;

/// How tokens are to be chosen, where the adapter says: llama.cpp's words and meanings.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[allow(missing_docs)] // the flags of llama.cpp
pub struct Sampling {
    pub temp: Option<f32>,
    pub top_k: Option<i32>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub repeat_penalty: Option<f32>,
    pub repeat_last_n: Option<i32>,
}

impl Sampling {
    /// What is stated here, and else there.
    pub fn or(&self, other: &Sampling) -> Sampling {
        Sampling {
            temp: self.temp.or(other.temp),
            top_k: self.top_k.or(other.top_k),
            top_p: self.top_p.or(other.top_p),
            min_p: self.min_p.or(other.min_p),
            repeat_penalty: self.repeat_penalty.or(other.repeat_penalty),
            repeat_last_n: self.repeat_last_n.or(other.repeat_last_n),
        }
    }

    /// What is stated here and not there.
    pub fn without(&self, other: &Sampling) -> Sampling {
        Sampling {
            temp: self.temp.filter(|_| other.temp.is_none()),
            top_k: self.top_k.filter(|_| other.top_k.is_none()),
            top_p: self.top_p.filter(|_| other.top_p.is_none()),
            min_p: self.min_p.filter(|_| other.min_p.is_none()),
            repeat_penalty: self.repeat_penalty.filter(|_| other.repeat_penalty.is_none()),
            repeat_last_n: self.repeat_last_n.filter(|_| other.repeat_last_n.is_none()),
        }
    }

    /// Flag, llama.cpp's key and value of each that is stated.
    pub fn stated(&self) -> impl Iterator<Item = (&'static str, &'static str, Value)> {
        let Sampling { temp, top_k, top_p, min_p, repeat_penalty, repeat_last_n } = *self;
        let f = |x: Option<f32>| x.map(Value::F32);
        let i = |x: Option<i32>| x.map(Value::I32);
        [
            ("--temp", "temp", f(temp)),
            ("--top-k", "top_k", i(top_k)),
            ("--top-p", "top_p", f(top_p)),
            ("--min-p", "min_p", f(min_p)),
            ("--repeat-penalty", "penalty_repeat", f(repeat_penalty)),
            ("--repeat-last-n", "penalty_last_n", i(repeat_last_n)),
        ]
        .into_iter()
        .filter_map(|(flag, key, value)| Some((flag, key, value?)))
    }

    /// Refuses what no sampler takes.
    ///
    /// # Errors
    ///
    /// [`Code::Usage`](crate::error::Code::Usage), with the flag.
    pub fn check(&self) -> Result<()> {
        for (flag, x, least) in [
            ("--temp", self.temp, f32::MIN),
            ("--top-p", self.top_p, 0.0),
            ("--min-p", self.min_p, 0.0),
            ("--repeat-penalty", self.repeat_penalty, f32::MIN_POSITIVE),
        ] {
            if x.is_some_and(|x| !x.is_finite() || x < least) {
                return Err(wrong(flag, &format!("a finite number of at least {least}")));
            }
        }
        Ok(())
    }

    /// `generation_config.json`, as transformers reads it; `None` where nothing is stated that it has a word for.
    pub fn generation_config(&self) -> Option<Json> {
        // The shortest decimal of the F32.
        let float = |x: f32| Json::from(x.to_string().parse::<f64>().unwrap_or(f64::from(x)));
        let mut out = Map::new();
        if let Some(temp) = self.temp {
            out.insert("do_sample".into(), (temp > 0.0).into());
            if temp > 0.0 {
                out.insert("temperature".into(), float(temp));
            }
        }
        // 0 is all tokens, in both.
        out.extend(self.top_k.map(|k| ("top_k".into(), k.max(0).into())));
        out.extend(self.top_p.map(|p| ("top_p".into(), float(p))));
        out.extend(self.min_p.map(|p| ("min_p".into(), float(p))));
        out.extend(self.repeat_penalty.map(|p| ("repetition_penalty".into(), float(p))));
        (!out.is_empty()).then(|| Json::Object(out))
    }

    /// What several adapters say; see [`agreed`].
    ///
    /// # Errors
    ///
    /// As there, for what `flags` leave open.
    pub fn agreed(flags: Sampling, said: &[Sampling]) -> Result<Sampling> {
        fn one<T: PartialEq>(
            flag: &str,
            of: fn(&Sampling) -> Option<T>,
            flags: &Sampling,
            said: &[Sampling],
        ) -> Result<Option<T>> {
            match of(flags) {
                None => agreed(flag, said.iter().map(of)),
                given => Ok(given),
            }
        }
        Ok(Sampling {
            temp: one("--temp", |s| s.temp, &flags, said)?,
            top_k: one("--top-k", |s| s.top_k, &flags, said)?,
            top_p: one("--top-p", |s| s.top_p, &flags, said)?,
            min_p: one("--min-p", |s| s.min_p, &flags, said)?,
            repeat_penalty: one("--repeat-penalty", |s| s.repeat_penalty, &flags, said)?,
            repeat_last_n: one("--repeat-last-n", |s| s.repeat_last_n, &flags, said)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::error::Code;

    #[test]
    fn flags_come_first_and_adapters_must_agree() {
        let said = |temp, top_k| Sampling { temp, top_k, ..Sampling::default() };
        let found = Sampling::agreed(
            said(None, Some(1)),
            &[said(Some(0.5), None), said(None, Some(9)), said(Some(0.5), Some(8))],
        )
        .unwrap();
        assert_eq!(found, said(Some(0.5), Some(1)));
        let e = Sampling::agreed(said(None, None), &[said(Some(0.5), None), said(Some(0.6), None)]).unwrap_err();
        assert_eq!((e.code(), e.field_name()), (Code::Usage, Some("--temp")));
    }

    #[test]
    fn transformers_gets_its_own_words() {
        let sampling = |temp, top_k| Sampling {
            temp: Some(temp),
            top_k: Some(top_k),
            repeat_penalty: Some(1.1),
            ..Sampling::default()
        };
        assert_eq!(
            sampling(0.0, 40).generation_config().unwrap(),
            json!({ "do_sample": false, "top_k": 40, "repetition_penalty": 1.1 })
        );
        assert_eq!(
            sampling(0.7, -1).generation_config().unwrap(),
            json!({ "do_sample": true, "temperature": 0.7, "top_k": 0, "repetition_penalty": 1.1 })
        );
        assert_eq!(Sampling { repeat_last_n: Some(3), ..Sampling::default() }.generation_config(), None);
    }
}
