//! Chat templates, each in the folder of a base that is right but for it.

use ptplus::base::BaseModel;
use ptplus::error::{Code, Result};
use ptplus::format::limits::TEMPLATE_BYTES;
use ptplus::generate::{BaseText, Prompt};

use crate::case::{Case, accepted, large, refused};
use crate::{base_config, tokenizer_files};

const CONTEXT: usize = 1 << 20;

pub fn read(template: Vec<u8>) -> Result<()> {
    read_with(template, CONTEXT)
}

/// As with a model of a short context.
pub fn read_short(template: Vec<u8>) -> Result<()> {
    read_with(template, 64)
}

fn read_with(template: Vec<u8>, n_context: usize) -> Result<()> {
    let dir = tokenizer_files::folder();
    std::fs::write(dir.path().join("config.json"), base_config::right()).expect("a file");
    std::fs::write(dir.path().join("model.safetensors"), base_config::weights()).expect("a file");
    std::fs::write(dir.path().join("chat_template.jinja"), template).expect("a file");
    let text = BaseText::of(&BaseModel::open(dir.path())?, None)?;
    text.tokens(Prompt::Chat { system: Some("be"), user: "ab" }, n_context).map(drop)
}

pub fn cases() -> Vec<Case> {
    [idioms(), syntax(), nesting(), numbers(), growth(), work(), large_files()].into_iter().flatten().collect()
}

/// What the templates of models do.
fn idioms() -> Vec<Case> {
    [
        ("no template", ""),
        ("messages in turn", "{% for m in messages %}{{ m.role + m['content'] | trim }}{% endfor %}"),
        ("a byte order mark", "\u{feff}{{ messages[0].content }}"),
        ("a part of the messages is set", "{% set messages = messages[1:] %}{{ messages[0].content }}"),
        ("messages backwards", "{% for m in messages[::-1] %}{{ m.content }}{% endfor %}"),
        ("a namespace", "{% set ns = namespace(found=false, n=messages|length) %}{% set ns.found = true %}{{ ns.n }}"),
        ("a namespace of lists", "{% set ns = namespace(l=[]) %}{% for m in messages %}{% set ns.l = ns.l + [m] %}{% endfor %}{{ ns.l[1].role }}"),
        ("messages in a namespace", "{% set ns = namespace() %}{% set ns.m = messages[1:] %}{{ ns.m[0].content }}"),
        ("a tuple to look in", "{% if messages[0].role in ('system', 'user') and 'a' not in ['b'] %}x{% endif %}"),
        ("two names set at once", "{% set a, b = 1, 2 %}{% set (c, d) = (a, b) %}{{ c + d }}"),
        ("two names in a loop", "{% for (k, v) in {'a': 1}.items() %}{{ k ~ v }}{% endfor %}"),
        ("names for a while", "{% with a = [1], b = {'c': 2} %}{{ a[0] + b.c }}{% endwith %}"),
        ("a name for what is not there", "{% set x = missing %}{{ x is defined }}"),
        ("a macro", "{% macro f(a, b=[1], c={}) %}{{ a }}{{ b[0] }}{% endmacro %}{{ f(1) }}{{ f(1, [2]) }}"),
        ("a macro in macros", "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(8) }}"),
        ("a macro by another name", "{% macro f(n) %}{{ n }}{% endmacro %}{% set g = f %}{{ g(1) }}"),
        ("the outer loop", "{% for m in messages %}{% set outer = loop %}{% for c in 'ab' %}{{ outer.index }}{% endfor %}{% endfor %}"),
        ("text set by a block", "{% set x %}a{{ 1 }}{% endset %}{{ x }}"),
        ("what looks like a tag in text", "{{ '{% set ns.x = ' }}{% raw %}{% set y = [1] %}{% endraw %}{# {% set #}"),
        ("a dict of lists", "{% set d = {'a': [1, {'b': 'ab'[0]}]} %}{{ d['a'][1].b }}{{ d | tojson(indent=2) }}"),
        ("format with a width", "{{ '{:>3} {}'.format('a', 5) }}"),
        ("text joined", "{{ 'abc'|join('-') }}{{ ''|join }}{{ [1, 'a', none]|join }}{{ messages|join(',', attribute='role') }}"),
        ("text joined by Python", "{{ ','.join(['a', 'b']) }}{{ '-'.join('ab') }}{{ ['a', 'b']|join(d=', ') }}{{ [1, 2]|join(0) }}{{ [{'a': {'b': 1}}]|join(',', attribute='a.b') }}"),
        ("text of lists", "{{ [1, 'a'] }}{{ [1] ~ 'a' }}{{ [1]|string }}{{ ['a']|join(',') }}"),
        ("numbers up to 100,000", "{{ range(100000)|length }}{{ range(10, 0, -2)|list }}"),
        ("text split", "{{ ('a,b' | split(','))[0] }}{{ 'a b'.split()[1] }}{{ ('a\nb' | lines)[1] }}"),
        ("a test without brackets", "{% if 4 is divisibleby 2 %}x{% endif %}{{ 'a' is in ['a'] }}{{ 'a' is in(['a']) }}"),
        ("a choice", "{{ (1, 2)[0] if messages else [3][0] }}{{ not [1] }}{{ -(1) }}"),
        ("training's own tags", "{% generation %}a{% endgeneration %}"),
    ]
    .map(|(name, template)| accepted(name, template))
    .into()
}

fn syntax() -> Vec<Case> {
    let mut cases = Vec::from(
        [
            ("a tag that does not end", "{%"),
            ("a loop that does not end", "{% for a in b %}"),
            ("an end without a beginning", "{% endfor %}"),
            ("an unknown tag", "{% nonsense %}"),
            ("another file", "{% include 'x' %}"),
            ("an unknown filter", "{{ 1 | nonsense }}"),
            ("a clock", "{{ strftime_now('%Y') }}"),
            ("nothing to call", "{{ missing() }}"),
            ("a division by zero", "{{ 1 / 0 }}"),
            ("a conversation refused", "{{ raise_exception('no\u{1b}[31m\n') }}"),
        ]
        .map(|(name, template)| refused(name, template, Code::ChatTemplate)),
    );
    cases.push(refused("a byte that is not UTF-8", b"a\xff", Code::TokenizerInvalid));
    for (name, tag) in [
        ("attributes in a row", format!("{{{{ a{} }}}}", ".b".repeat(20_000))),
        ("filters in a row", format!("{{{{ a{} }}}}", "|trim".repeat(20_000))),
        ("sums in a row", format!("{{{{ 1{} }}}}", "+1".repeat(20_000))),
        ("slices in a row", format!("{{{{ messages{} }}}}", "[0:]".repeat(20_000))),
        ("signs in a row", format!("{{{{ {}1 }}}}", "-".repeat(20_000))),
        ("brackets in a row", format!("{{{{ {}1{} }}}}", "(".repeat(50_000), ")".repeat(50_000))),
        ("a list of 20,000", format!("{{{{ [{}] }}}}", "1,".repeat(20_000))),
        ("conditions in conditions", format!("{}x{}", "{% if true %}".repeat(9_000), "{% endif %}".repeat(9_000))),
    ] {
        cases.push(refused(name, tag, Code::ChatTemplate));
    }
    cases
}

/// Values in values, and in themselves.
fn nesting() -> Vec<Case> {
    let loop_of = |set: &str, end: &str| {
        format!("{{% set ns = namespace(l=[], m=[]) %}}{{% for i in range(90000) %}}{set}{{% endfor %}}{end}")
    };
    let deeper = "{% set ns.l = [ns.l] %}";
    let doubled = |end: &str| {
        let set = "{% set ns.l = [ns.l, ns.l] %}{% set ns.m = [ns.m, ns.m] %}";
        format!("{{% set ns = namespace(l=[1], m=[1]) %}}{}{end}", set.repeat(26))
    };
    let mut cases = Vec::new();
    for (name, template) in [
        ("a namespace in itself", "{% set ns = namespace() %}{% set ns.l = ns %}{{ ns }}".to_owned()),
        ("a namespace in its list", "{% set ns = namespace() %}{% set ns.l = [[ns]] %}{{ ns }}".into()),
        ("a namespace in another", "{% set a = namespace() %}{% set b = namespace(a=a) %}{% set a.b = b %}".into()),
        ("a namespace in two names", "{% set a = namespace() %}{% set a.b, c = a, a %}{{ a }}".into()),
        ("a namespace in brackets", "{% set a = namespace() %}{% set (a.b, c) = (a, a) %}{{ a }}".into()),
        ("a namespace in a macro in itself", "{% set a = namespace() %}{% macro f() %}{{ a }}{% endmacro %}{% set a.f = f %}".into()),
        ("a namespace in a loop in itself", "{% set a = namespace() %}{% for b in [a] %}{% set a.l = loop %}{% endfor %}{{ a }}".into()),
        ("deep lists written", loop_of(deeper, "{{ ns.l }}")),
        ("deep lists as JSON", loop_of(deeper, "{{ ns.l | tojson }}")),
        ("deep lists dropped", loop_of(deeper, "ok")),
        ("deep lists compared", loop_of("{% set ns.l = [ns.l] %}{% set ns.m = [ns.m] %}", "{{ ns.l == ns.m }}")),
        ("deep dicts", loop_of("{% set ns.l = {'a': ns.l} %}", "{{ ns.l }}")),
        ("deep tuples", loop_of("{% set ns.l = (ns.l,) %}", "{{ ns.l }}")),
        ("deep bare tuples", loop_of("{% set ns.l = ns.l, 1 %}", "{{ ns.l }}")),
        ("deep dicts by a function", loop_of("{% set ns.l = dict(a=ns.l) %}", "{{ ns.l }}")),
        ("deep lists without a namespace", format!("{{% set l = [] %}}{}ok", "{% set l = [l] %}".repeat(10_000))),
        ("deep lists by batch", format!("{{% set l = [1] %}}{}{{{{ l }}}}", "{% set l = l|batch(1) %}".repeat(9_000))),
        ("33 levels", format!("{{{{ {}1{} }}}}", "[".repeat(33), "]".repeat(33))),
        ("lists that double, written", doubled("{{ ns.l }}")),
        ("lists that double, joined", doubled("{{ ns.l ~ '' }}")),
        ("lists that double, as JSON", doubled("{{ ns.l | tojson | length }}")),
        ("lists that double, as text", doubled("{{ ns.l | string | length }}")),
        ("lists that double, compared", doubled("{{ ns.l == ns.m }}")),
        ("lists that double in loops", format!("{}{{{{ a ~ '' }}}}{}", "{% for a in [[a, a]] %}".repeat(30), "{% endfor %}".repeat(30))),
        ("lists that double in macros", "{% macro f(l, n) %}{% if n %}{{ f([l, l], n - 1) }}{% else %}{{ l ~ '' }}{% endif %}{% endmacro %}{{ f([1, 1, 1, 1], 12) }}".replace("[l, l]", "[l, l, l, l, l, l, l, l]")),
        ("a macro without end", "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}".into()),
        ("a loop without end", "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}".into()),
        ("pretty print", "{{ [1] | pprint }}".into()),
    ] {
        cases.push(refused(name, template, Code::ChatTemplate));
    }
    let slices = "[0:]".repeat(250);
    let macros = format!(
        "{{% macro f(l, n) %}}{{% if n %}}{{{{ f(l{slices}, n - 1) }}}}{{% else %}}{{{{ l }}}}{{% endif %}}{{% endmacro %}}"
    );
    cases.push(accepted("slices in macros", format!("{macros}{{{{ f(messages, 6) }}}}")));
    cases.push(accepted("32 levels", format!("{{{{ {}1{} }}}}", "[".repeat(32), "]".repeat(32))));
    cases.push(accepted(
        "slices of slices",
        format!("{}{{{{ messages }}}}", "{% set messages = messages[0:] %}".repeat(500)),
    ));
    cases
}

fn numbers() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, template) in [
        ("a range that overflows", "{{ range(0,-9223372036854775807,-1)|length }}"),
        (
            "a range from the least number",
            "{{ range(-9223372036854775808, 9223372036854775807, 9223372036854775807) }}",
        ),
        ("a range without step", "{{ range(1,0,0) }}"),
        ("a range too long", "{{ range(100001)|list|length }}"),
        ("a power too large", "{{ 10**100000000 }}"),
        ("a wide format", "{{ '{:>900000000}'.format('a') }}"),
        ("a wide format of a number", "{{ '{:0900000000d}'.format(1) }}"),
        ("a wide format given later", "{{ '{:>{}}'.format('a', 900000000) }}"),
        ("a wide format by %", "{{ '%1000000000s'|format('a') }}"),
        ("a precise format", "{{ '{:.900000000f}'.format(1.5) }}"),
    ] {
        cases.push(refused(name, template, Code::ChatTemplate));
    }
    cases
}

/// A list of 100 kB 3,600 times, made while it is read.
fn sums(end: &str) -> String {
    let (a, b) = (vec!["a"; 60].join("+"), vec!["b"; 60].join("+"));
    let text = "x".repeat(100_000);
    format!(
        "{{% set a = ['{text}'] %}}{{% with b = {a} %}}{{% with c = {b} %}}{{{{ {end} }}}}{{% endwith %}}{{% endwith %}}"
    )
}

/// Much from little.
fn growth() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, template) in [
        ("loops in loops", "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}"),
        ("text of ten million", "{{ 'b ' * 10000000 }}"),
        ("text of half a million", "{{ 'b' * 500000 }}"),
        ("a sum of sums, joined", &sums("''.join(c)|length")),
        ("a sum of sums, joined by a filter", &sums("c|join|length")),
        (
            "text that doubles",
            "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
        ),
        ("text split by a filter", "{{ ('x'*30000000)|split('x')|length }}"),
        ("text split by a filter, less of it", "{{ ('x'*7000000)|split('x')|length }}"),
        ("text split into lines", "{{ ('\\n'*7000000)|lines|length }}"),
        ("text split by a method", "{{ ('x'*7000000).split('x')|length }}"),
        ("text as a list", "{{ ('x'*7000000)|list|length }}"),
        ("text replaced", "{{ ('x' * 1000000).replace('x', 'y' * 1000) }}"),
        ("a list many times", "{{ ([[1]*10000]*5000)|tojson|length }}"),
        ("a list many times, written", "{{ ['x' * 1000000] * 1000 }}"),
        ("a list many times, joined", "{{ (['x' * 1000000] * 1000) ~ '' }}"),
        ("text many times in a list", "{% set s = 'x' * 4000000 %}{{ [s, s, s, s, s, s, s, s] ~ '' }}"),
        (
            "lists that are sums",
            "{% set ns = namespace(l=[1]) %}{% for i in range(30) %}{% set ns.l = ns.l + ns.l %}{% endfor %}{{ ns.l|length }}",
        ),
        ("an indent", "{{ 'a\\nb'|indent(100000000000)|length }}"),
        ("a search in much", "{% for i in range(90000) %}{{ i in range(90000)|list }}{% endfor %}"),
    ] {
        cases.push(refused(name, template, Code::ChatTemplate));
    }
    cases
}

/// Much work that makes nothing: without its price each of these would be accepted, after a long time.
fn work() -> Vec<Case> {
    let text = "{% set s = 'x' * 400000 %}";
    let texts = "{% set s = 'x' * 400000 %}{% set t = 'x' * 400000 %}";
    let list = "{% set l = range(2000)|list %}";
    let lists = "{% set l = [range(2000)|list] %}{% set m = [range(2000)|list] %}";
    let mut cases = Vec::new();
    for (name, before, n, each) in [
        ("texts compared", texts, 4000, "{% if s == t %}{% endif %}"),
        ("texts put in order", texts, 4000, "{% if s < t %}{% endif %}"),
        ("texts compared in a row", texts, 4000, "{% if s == t == s %}{% endif %}"),
        ("texts compared by a test", texts, 4000, "{% if s is eq t %}{% endif %}"),
        ("the beginning of a text", texts, 4000, "{% if s is startingwith t %}{% endif %}"),
        ("the beginning of a text by a method", texts, 4000, "{% if s.startswith(t) %}{% endif %}"),
        ("capitals looked for", "{% set s = 'X' * 400000 %}", 4000, "{% if s is upper %}{% endif %}"),
        (
            "a text looked for in a list",
            "{% set s = 'x' * 200000 %}{% set t = 'x' * 200000 ~ 'y' %}{% set l = [t, t, t, t, t, t] %}",
            4000,
            "{% if s in l %}{% endif %}",
        ),
        (
            "a text looked for by a test",
            "{% set s = 'x' * 200000 %}{% set t = 'x' * 200000 ~ 'y' %}{% set l = [t, t, t, t, t, t] %}",
            4000,
            "{% if s is in l %}{% endif %}",
        ),
        (
            "a list looked for in a text",
            "{% set s = 'x' * 200000 %}{% set l = [s, s, s, s] %}",
            4000,
            "{% if l in 'x' %}{% endif %}",
        ),
        (
            "a text counted in a list",
            "{% set s = 'x' * 200000 %}{% set t = 'x' * 200000 %}{% set l = [t, t, t, t] %}",
            4000,
            "{% set n = l.count(s) %}",
        ),
        ("lists compared", lists, 4000, "{% if l == m %}{% endif %}"),
        (
            "lists in a dict compared",
            "{% set l = {'a': range(2000)|list} %}{% set m = {'a': range(2000)|list} %}",
            4000,
            "{% if l == m %}{% endif %}",
        ),
        ("a text as a key", text, 4000, "{% set n = {}[s] %}"),
        ("a text as a key by a method", text, 4000, "{% set n = {}.get(s) %}"),
        ("a text as a key by a filter", text, 4000, "{% set n = {'a': 1}|attr(s) %}"),
        ("a text as a key of a new dict", text, 4000, "{% set n = {s: 1} %}"),
        ("a list as a key", list, 4000, "{% set n = {}[l] %}"),
        ("the last character", text, 4000, "{% set n = s[-1] %}"),
        ("the first of all characters", text, 4000, "{% for c in s %}{% break %}{% endfor %}"),
        (
            "a change of a text",
            "{% set s = 'x' * 400000 %}{% set t = 'x' * 400000 %}",
            4000,
            "{% if loop.changed(s) or loop.changed(t) %}{% endif %}",
        ),
        (
            "characters off a text",
            "{% set s = 'x' * 30000 %}{% set t = 'y' * 30000 ~ 'x' %}",
            300,
            "{% set n = s|trim(t) %}",
        ),
        (
            "characters off a text by a method",
            "{% set s = 'x' * 30000 %}{% set t = 'y' * 30000 ~ 'x' %}",
            300,
            "{% set n = s.strip(t) %}",
        ),
        (
            "one text many times",
            "{% set s = '{0}' * 20000 %}{% set t = 'x' * 400000 %}",
            1,
            "{% set n = s.format(t)|length %}",
        ),
        (
            "one text many times by %",
            "{% set s = '%(a)s' * 20000 %}{% set t = 'x' * 400000 %}",
            1,
            "{% set n = (s|format(a=t))|length %}",
        ),
        ("the end of a list", list, 4000, "{% set n = l[1999:]|first %}"),
        ("every 2,000th of a list", list, 4000, "{% set n = l[::1999]|list %}"),
        ("a list many times, its end", list, 4000, "{% set n = (l * 50)[99999:]|first %}"),
        ("a sum of lists, its end", list, 4000, "{% set n = (l + l + l + l)[7999:]|first %}"),
        (
            "a long list against one text",
            "{% set s = 'X' * 1000000 %}{% set l = ['Y'] * 6000 + [s] %}",
            1,
            "{% set n = l|min %}",
        ),
        (
            "a long list against one text, the other way",
            "{% set s = 'Y' * 1000000 %}{% set l = [s] + ['X'] * 6000 %}",
            1,
            "{% set n = l|max %}",
        ),
        ("long texts sorted", "{% set s = 'X' * 400000 %}{% set l = [s] + ['Y'] * 2000 %}", 1, "{% set n = l|sort %}"),
        (
            "long texts sorted for each",
            "{% set s = 'X' * 200000 %}{% set l = [[s] + ['Y'] * 900] * 2 %}",
            1,
            "{% set n = l|map('sort')|list %}",
        ),
        (
            "a text without doubles",
            "{% set s = 'X' * 200000 %}{% set l = [s, s, s, s, s, s, s, s, s] %}",
            2000,
            "{% set n = l|unique %}",
        ),
        (
            "a dict sorted",
            "{% set s = 'X' * 400000 %}{% set l = {'a': s, 'b': s, 'c': s, 'd': s} %}",
            4000,
            "{% set n = l|dictsort(by='value') %}",
        ),
        (
            "a sum of texts",
            "{% set s = 'x' * 100 %}{% set l = [s] * 8000 %}",
            1,
            "{% set n = l|sum(start='')|length %}",
        ),
        (
            "a sum of lists by a filter",
            "{% set l = [[1, 2, 3, 4, 5, 6, 7, 8]] * 2000 %}",
            9,
            "{% set n = l|sum(start=[])|length %}",
        ),
        (
            "one key of many",
            "{% set s = 'x' * 100000 %}{% set l = [{'a': 1}] * 5000 %}",
            5,
            "{% set n = l|map(attribute=s)|list %}",
        ),
        (
            "one key of many to sort by",
            "{% set s = 'x' * 100000 %}{% set l = [{'a': 1}] * 5000 %}",
            5,
            "{% set n = l|sort(attribute=s) %}",
        ),
        (
            "many keys to sort by",
            "{% set s = 'a,' * 5000 %}{% set l = [{'a': 1}] * 5000 %}",
            5,
            "{% set n = l|sort(attribute=s) %}",
        ),
        (
            "many looked for in many",
            "{% set l = range(5000)|list %}",
            3,
            "{% set n = l|select('in', l[::-1])|list|length %}",
        ),
        (
            "many not looked for in many",
            "{% set l = range(5000)|list %}",
            3,
            "{% set n = l|reject('in', l[::-1])|list|length %}",
        ),
        (
            "attributes looked for in many",
            "{% set l = [{'a': 1}] * 5000 %}{% set m = [0] * 5000 %}",
            3,
            "{% set n = l|selectattr('a', 'in', m)|list|length %}",
        ),
    ] {
        let template = format!("{before}{{% for i in range({n}) %}}{each}{{% endfor %}}");
        cases.push(refused(name, template, Code::ChatTemplate));
    }
    let word = "a".repeat(257);
    cases.push(refused("a long word", format!("{{{{ {word} }}}}"), Code::ChatTemplate));
    cases.push(refused("a long attribute", format!("{{{{ messages.{word} }}}}"), Code::ChatTemplate));
    cases.push(refused("a long name of an argument", format!("{{{{ dict({word}=1) }}}}"), Code::ChatTemplate));
    cases.push(accepted("a word of 256 bytes", format!("{{{{ {} }}}}", "a".repeat(256))));
    cases
}

fn large_files() -> Vec<Case> {
    vec![
        large("the largest template", || vec![b'a'; TEMPLATE_BYTES], None),
        large("a byte more", || vec![b'a'; TEMPLATE_BYTES + 1], Some(Code::ChatTemplate)),
        large("a template of 30 MB", || vec![b'a'; 30_000_000], Some(Code::TokenizerInvalid)),
        large("tags without end", || "{{1}}".repeat(TEMPLATE_BYTES / 5).into_bytes(), None),
    ]
}

/// What does not fit into a context of 64 tokens of at most two bytes.
pub fn short_cases() -> Vec<Case> {
    vec![
        accepted("a prompt that fits", "{{ 'ab' * 60 }}"),
        refused("a prompt that does not fit", "{{ 'ab' * 64 }}", Code::ContextFull),
        refused("a prompt of 200 kB", "{{ 'ab' * 100000 }}", Code::ContextFull),
    ]
}
