//! Layout files, beside a right adapter of one layer.

use ptplus::error::{Code, Result};
use ptplus::format::limits::NAME_BYTES;
use ptplus::import::{self, Options};

use crate::case::{Case, accepted, refused};
use crate::safetensors;

pub fn read(layout: Vec<u8>) -> Result<()> {
    let dir = tempfile::tempdir().expect("a folder");
    let header = r#"{"net.0.m":{"dtype":"F32","shape":[2,4,4],"data_offsets":[0,128]}}"#;
    let weights = dir.path().join("w.safetensors");
    std::fs::write(&weights, safetensors::file(header, 128)).expect("a file");
    let path = dir.path().join("layout.toml");
    std::fs::write(&path, layout).expect("a file");
    import::read(&weights, &Options { layout: Some(path), ..Options::default() }, None).map(drop)
}

const CONSTANTS: &str = "[constants]\nfeature_map='elu'\nquery_tap='post_rope'\nquery_scale=1.0\nmemory_scale=1\nmemory_sharing='per_head'\n\
    num_layers=1\nnum_attention_heads=2\nnum_key_value_heads=2\nhead_dim=4\nnum_features=4\n";
const RULE: &str = "[[tensor]]\nname='net\\.(?<layer>[0-9]+)\\.m'\nrole='memory'\naxes='H F V'\n";

fn right() -> String {
    format!("{CONSTANTS}{RULE}")
}

/// Right files, to be damaged.
pub fn right_files() -> Vec<Vec<u8>> {
    let mut all: Vec<String> =
        ["V F H", "(H F) V", "H (F V)"].iter().map(|axes| right().replace("H F V", axes)).collect();
    all.extend(["x=[{a=1.5}]", "x.y='z'", "# é", "x=0x10", "y=true"].map(|line| right().replace("num_layers=1", line)));
    all.push(format!("{}[[ignore]]\nname='ema\\..*'\nreason='averaged copy'\n", right()));
    all.push(right().replace("role='memory'\naxes='H F V'", "role='normalizer'\naxes='H F'"));
    all.push(right().replace("axes='H F V'", "axes='H F V'\ntranspose=true"));
    all.into_iter().map(String::into_bytes).collect()
}

/// A name ignored for a reason of so many bytes.
fn reason(n: usize) -> String {
    format!("{}[[ignore]]\nname='x'\nreason='{}'\n", right(), "r".repeat(n))
}

/// The right constants with this rule.
fn rule(body: &str) -> String {
    format!("{CONSTANTS}[[tensor]]\n{body}\n")
}

fn named(pattern: &str) -> String {
    rule(&format!("name='''{pattern}'''\nrole='memory'\naxes='H F V'"))
}

/// The right file with one more constant, in place of one of that name.
fn constant(key: &str, value: &str) -> String {
    let kept: Vec<&str> = CONSTANTS.lines().filter(|l| !l.starts_with(&format!("{key}="))).collect();
    format!("{}\n{key}={value}\n{RULE}", kept.join("\n"))
}

pub fn cases() -> Vec<Case> {
    [documents(), rules(), patterns(), constants()].into_iter().flatten().collect()
}

fn documents() -> Vec<Case> {
    use Code::*;
    let nested = |n: usize| constant("x", &format!("{}{}", "[".repeat(n), "]".repeat(n)));
    vec![
        accepted("a right file", right()),
        accepted("line breaks of Windows", right().replace('\n', "\r\n")),
        accepted("a byte order mark", format!("\u{feff}{}", right())),
        accepted("comments", format!("# é\n{}", right())),
        refused("no byte", "", LayoutFile),
        refused("not TOML", "{\"tensor\":[]}", LayoutSyntax),
        refused("not UTF-8", b"\xff\xfe", LayoutSyntax),
        refused("NUL", format!("{}\0", right()), LayoutSyntax),
        refused("a control character in a comment", format!("#\u{1b}[31m\n{}", right()), LayoutSyntax),
        refused("a key that does not end", "[[tensor]]\nname='", LayoutSyntax),
        refused("a key twice", format!("{}\nrole='memory'", right()), LayoutSyntax),
        refused("a table twice", format!("{}\n[constants]\n", right()), LayoutSyntax),
        refused("an unknown table", format!("{}\n[other]\n", right()), LayoutFile),
        refused("constants as a list", "constants=[]\n[[tensor]]\nname='a'\nrole='memory'", LayoutFile),
        refused("tensor as a table", "[tensor]\nname='a'\nrole='memory'", LayoutFile),
        refused("lists nested 100 deep", nested(100), LayoutSyntax),
        refused("lists nested 500,000 deep", nested(500_000), LayoutSyntax),
        refused("open brackets, 900,000", "x=".to_owned() + &"[".repeat(900_000), LayoutSyntax),
        refused(
            "inline tables of dotted keys",
            constant("x", &format!("{}1{}", format!("{{a{}=", ".a".repeat(70)).repeat(70), "}".repeat(70))),
            LayoutSyntax,
        ),
        refused("open braces, 900,000", "x=".to_owned() + &"{a=".repeat(300_000), LayoutSyntax),
        refused("a dotted key of 100,000 parts", constant(&format!("x{}", ".a".repeat(100_000)), "1"), LayoutSyntax),
        refused(
            "a table header of 100,000 parts",
            format!("{}\n[constants{}]\n", right(), ".a".repeat(100_000)),
            LayoutSyntax,
        ),
        refused("larger than a megabyte", format!("{}{}", right(), "#".repeat(1 << 20)), LayoutSyntax),
        refused(
            "many tables one inside another",
            (1..900).map(|i| format!("[constants{}]\n", ".a".repeat(i))).collect::<String>() + RULE,
            LayoutSyntax,
        ),
    ]
}

fn rules() -> Vec<Case> {
    use Code::LayoutFile as L;
    let layer = "name='net\\.(?<layer>[0-9]+)\\.m'";
    let many = |n: usize| {
        format!("{}{}", right(), (0..n).map(|i| format!("[[ignore]]\nname='x{i}'\nreason='r'\n")).collect::<String>())
    };
    vec![
        accepted("an ignored name", format!("{}[[ignore]]\nname='x'\nreason='r'\n", right())),
        accepted("most entries", many(255)),
        refused("one entry too many", many(256), L),
        refused("10,000 entries", many(10_000), L),
        refused("no rule", CONSTANTS, Code::AdapterKind),
        refused("no name", rule("role='memory'"), L),
        refused("no role", rule(layer), L),
        refused("name as number", rule("name=1\nrole='memory'"), L),
        refused("role as list", rule(&format!("{layer}\nrole=['memory']")), L),
        refused("unknown role", rule(&format!("{layer}\nrole='Memory'")), L),
        refused("role of 500 kB", rule(&format!("{layer}\nrole='{}'", "x".repeat(500_000))), L),
        refused("unknown key", rule(&format!("{layer}\nrole='memory'\nshape=[1]")), L),
        refused("transpose without axes", rule(&format!("{layer}\nrole='memory'\ntranspose=true")), L),
        refused("transpose as number", rule(&format!("{layer}\nrole='memory'\naxes='H F V'\ntranspose=1")), L),
        refused("axes empty", rule(&format!("{layer}\nrole='memory'\naxes=''")), L),
        refused("axes twice the same", rule(&format!("{layer}\nrole='memory'\naxes='H F V F'")), L),
        refused("axes that lack one", rule(&format!("{layer}\nrole='memory'\naxes='H F'")), L),
        refused("axes of another role", rule(&format!("{layer}\nrole='memory'\naxes='H F D'")), L),
        refused("axes with a bracket open", rule(&format!("{layer}\nrole='memory'\naxes='(H F V'")), L),
        refused("axes with a bracket too many", rule(&format!("{layer}\nrole='memory'\naxes='H) F V'")), L),
        refused("axes with brackets in brackets", rule(&format!("{layer}\nrole='memory'\naxes='((H) F) V'")), L),
        refused("axes of 500 kB", rule(&format!("{layer}\nrole='memory'\naxes='{}'", "(".repeat(500_000))), L),
        refused("the layer twice", rule(&format!("{layer}\nrole='memory'\naxes='L H F V'")), L),
        refused("the layer nowhere", rule("name='net.0.m'\nrole='memory'\naxes='H F V'"), L),
        refused("two rules for a name", format!("{}{RULE}", right()), L),
        refused(
            "an ignored name that is a tensor too",
            format!("{}[[ignore]]\nname='net.*'\nreason='r'\n", right()),
            L,
        ),
        accepted("a long reason", reason(NAME_BYTES)),
        refused("a reason too long", reason(NAME_BYTES + 1), L),
        refused("an ignored name without reason", format!("{}[[ignore]]\nname='x'\n", right()), L),
    ]
}

fn patterns() -> Vec<Case> {
    use Code::LayoutFile as L;
    vec![
        refused("a group that does not close", named("(?<layer>x"), L),
        refused("a group that closes too often", named("net\\.(?<layer>[0-9]+)\\.m)|(?:x"), L),
        refused("an unknown group", named("(?<block>x)"), L),
        refused("a group twice", named("(?<layer>x)(?<layer>y)"), L),
        refused("look-around", named("(?=a)(?<layer>x)"), L),
        refused("a back reference", named("(?<layer>x)\\1"), L),
        refused("a repetition of nothing", named("*(?<layer>x)"), L),
        refused("a repetition of 2^32", named("(?<layer>x){4294967296}"), L),
        refused("repetitions of repetitions", named("(?<layer>x)((a{100}){100}){100}"), L),
        refused("classes that compile to megabytes", named("(?<layer>x)(\\pL{100}){100}"), L),
        refused(
            "groups nested 100,000 deep",
            named(&format!("{}(?<layer>x){}", "(?:".repeat(100_000), ")".repeat(100_000))),
            L,
        ),
        refused("a pattern of 500 kB", named(&format!("(?<layer>x){}", "a".repeat(500_000))), L),
        refused(
            "patterns that are large together",
            {
                let one = |i: usize| format!("[[ignore]]\nname='{i}\\pL{{60}}'\nreason='r'\n");
                format!("{}{}", right(), (0..200).map(one).collect::<String>())
            },
            L,
        ),
        refused("a layer that is no number", named("net\\.0\\.(?<layer>.)"), L),
        refused("a layer beyond 64 bits", named("(?<layer>net.0.m)"), L),
    ]
}

fn constants() -> Vec<Case> {
    use Code::*;
    vec![
        accepted("an unknown constant", constant("x", "'y'")),
        accepted(
            "a constant of every plain type",
            constant("x", "{a=1, b=1.5, c=true, d=['e'], f=-0x10}").replace("-0x10", "0x10"),
        ),
        refused("query_scale nan", constant("query_scale", "nan"), LayoutFile),
        refused("query_scale inf", constant("query_scale", "inf"), LayoutFile),
        refused("memory_scale -inf", constant("memory_scale", "-inf"), LayoutFile),
        refused("nan inside an unknown constant", constant("x", "[{a=nan}]"), LayoutFile),
        refused("a number beyond F64", constant("query_scale", "1e400"), LayoutFile),
        refused("a number beyond F32", constant("query_scale", "1e39"), ConfigField),
        refused("a number beyond 64 bits", constant("num_layers", "18446744073709551616"), LayoutFile),
        refused("a date", constant("x", "1979-05-27T07:32:00Z"), LayoutFile),
        refused("a time for a number", constant("query_scale", "07:32:00"), LayoutFile),
        refused("num_layers 0", constant("num_layers", "0"), ConfigField),
        refused("num_layers -1", constant("num_layers", "-1"), ConfigField),
        refused("num_layers as text", constant("num_layers", "'1'"), ConfigField),
        refused("an unknown feature map", constant("feature_map", "'os.system'"), ConfigUnsupported),
        refused("another kind of adapter", constant("peft_type", "'LORA'"), ConventionOpen),
        refused("KV heads that do not divide the heads", constant("num_key_value_heads", "3"), ConfigField),
    ]
}
