//! The HTML report, opened in a real browser: it must load, lay out at phone and desktop width in light and dark, and
//! leave the console empty. That needs Chromium: `cargo test --test it -- --ignored browser`.
#![cfg(feature = "report")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::common::{exit, json, model, ptplus, stderr, stdout};
use serde_json::Value;
use sha2::Digest as _;

fn chromium() -> Option<&'static str> {
    ["chromium", "chromium-browser", "google-chrome", "chrome"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success()))
}

/// The page as the browser sees it, and what it logged.
struct Opened {
    dom: String,
    console: Vec<String>,
}

fn open(browser: &str, page: &Path, width: u32, dark: bool) -> Opened {
    let profile = tempfile::tempdir().unwrap();
    let mut command = Command::new(browser);
    command
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
        .args(["--enable-logging=stderr", "--v=0", "--virtual-time-budget=2000"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("--window-size={width},900"))
        // Blink's enum: 0 dark, 1 light.
        .arg(format!("--blink-settings=preferredColorScheme={}", if dark { 0 } else { 1 }))
        .arg("--dump-dom")
        .arg(format!("file://{}", page.display()));
    let out = command.output().unwrap();
    let log = String::from_utf8_lossy(&out.stderr).into_owned();
    let console = log.lines().filter(|l| l.contains("CONSOLE")).map(str::to_owned).collect();
    Opened { dom: String::from_utf8_lossy(&out.stdout).into_owned(), console }
}

/// `page` with a script that measures it and says in the title what is wrong. The report itself has no script. A window is
/// at least 500 pixels wide; a phone is a frame in it, whose title becomes that of the window.
fn measured(browser: &str, page: &Path, width: u32, dark: bool) -> Opened {
    let html = std::fs::read_to_string(page).unwrap();
    // The same page with the policy lifted and a probe at its end.
    let policy = html.find("<meta http-equiv").unwrap();
    let end = policy + html[policy..].find('>').unwrap() + 1;
    let probe = "<script>
        const narrow = matchMedia('(max-width: 40rem)').matches;
        const shown = [...document.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().width > 0);
        const wrong = [];
        for (const d of document.querySelectorAll('details')) d.open = true;
        if (narrow) for (const e of document.querySelectorAll('.scroll')) if (e.scrollWidth > e.clientWidth) wrong.push('a table wider than the page');
        if (document.documentElement.scrollWidth > innerWidth) wrong.push('wider than the window');
        if (shown.some(s => s.classList.contains(narrow ? 'wide' : 'narrow'))) wrong.push('the wrong drawings');
        if (shown.length * 2 != document.querySelectorAll('svg').length) wrong.push('drawings shown: ' + shown.length);
        for (const s of shown) for (const t of s.querySelectorAll('text')) {
            const a = t.getBoundingClientRect(), b = s.getBoundingClientRect();
            if (a.left < b.left - 1 || a.right > b.right + 1 || a.bottom > b.bottom + 1) wrong.push('cut: ' + t.textContent.trim());
        }
        const lum = c => { const v = c.match(/[0-9.]+/g).slice(0, 3).map(x => x / 255).map(x => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4); return .2126 * v[0] + .7152 * v[1] + .0722 * v[2]; };
        const paper = lum(getComputedStyle(document.body).backgroundColor);
        const contrast = c => { const l = lum(c); return (Math.max(l, paper) + .05) / (Math.min(l, paper) + .05); };
        for (const e of document.querySelectorAll('p, h1, h2, dd, dt, td, th, caption, summary, .key')) if (contrast(getComputedStyle(e).color) < 4.5) wrong.push('faint: ' + e.tagName);
        for (const s of shown) for (const e of s.querySelectorAll('text')) if (contrast(getComputedStyle(e).fill) < 4.5) wrong.push('faint text in a plot');
        for (const s of shown) for (const e of s.querySelectorAll('circle, polygon')) if (contrast(getComputedStyle(e).fill) < 3) wrong.push('faint mark');
        document.title = 'measured ' + innerWidth + ' ' + (paper < .5 ? 'dark' : 'light') + ': ' + (wrong.join('; ') || 'all well');
        </script>";
    let copy = page.with_extension(format!("{width}-{dark}.html"));
    let mut html = format!("{}{}", &html[..policy], &html[end..]).replace("</body>", &format!("{probe}</body>"));
    if width < 500 {
        let told = html.replace("</script>", "parent.document.title = document.title;</script>");
        let escaped = told.replace('&', "&amp;").replace('"', "&quot;");
        let frame = format!("<iframe style=\"border: 0; height: 800px\" width={width} srcdoc=\"{escaped}\"></iframe>");
        html = format!("<!DOCTYPE html><html><head><title></title></head><body>{frame}</body></html>");
    }
    std::fs::write(&copy, html).unwrap();
    open(browser, &copy, width, dark)
}

fn reports(folder: &Path) -> Vec<PathBuf> {
    let m = model("llama-gqa");
    let path = |name: &str| m.join(name).into_os_string();
    let report = |name: &str| folder.join(name);
    let quantized = folder.join("q8.gguf");
    let out = ptplus([
        "quantize".into(),
        path("adapter"),
        "-o".into(),
        quantized.clone().into_os_string(),
        "q8_0".into(),
        "--base".into(),
        path("base"),
        "--report".into(),
        report("quantize.html").into_os_string(),
    ]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    for (name, adapter, reference, code) in [
        ("pass.html", path("adapter"), ("--probe", path("probe.safetensors")), 0),
        ("quantized.html", quantized.into_os_string(), ("--against", path("adapter")), 0),
        // Another model's adapter of the same sizes does not exist; another activation does.
        ("fail.html", path("adapter"), ("--probe", path("probe.safetensors")), 5),
    ] {
        let mut args = vec!["verify".into(), adapter, "--base".into(), path("base")];
        args.extend([reference.0.into(), reference.1]);
        args.extend(["--report".into(), report(name).into_os_string()]);
        if code == 5 {
            args.extend(["--tolerance".into(), "max_abs=1e-12".into()]);
        }
        let out = ptplus(args);
        assert_eq!(exit(&out), code, "{name}: {}", stderr(&out));
    }
    for (name, command, output) in [("convert.html", "convert", "a.gguf"), ("pack.html", "pack", "bundle")] {
        let mut args = vec![command.into(), path("adapter"), "--base".into(), path("base")];
        args.extend(["--probe".into(), path("probe.safetensors"), "-o".into(), folder.join(output).into()]);
        args.extend(["--report".into(), report(name).into_os_string()]);
        let out = ptplus(args);
        assert_eq!(exit(&out), 0, "{name}: {}", stderr(&out));
    }
    let mut refused =
        vec!["convert".into(), path("adapter"), "--base".into(), path("base"), "--outtype".into(), "q4_0".into()];
    refused.extend(["--max-error".into(), "kl=1e-9".into(), "-o".into(), folder.join("none.gguf").into()]);
    refused.extend(["--report".into(), report("refused-fail.html").into_os_string()]);
    assert_eq!(exit(&ptplus(refused)), 5);
    let mut compared =
        vec!["diff".into(), folder.join("bundle").into_os_string(), folder.join("q8.gguf").into_os_string()];
    compared.extend(["--report".into(), report("diff-fail.html").into_os_string()]);
    assert_eq!(exit(&ptplus(compared)), 5);
    // The page is beside the bundle, not in it: a bundle holds what its manifest lists.
    assert_eq!(exit(&ptplus(["check".into(), folder.join("bundle").into_os_string()])), 0);
    let pass = ["quantize.html", "pass.html", "quantized.html", "convert.html", "pack.html"];
    let fail = ["fail.html", "refused-fail.html", "diff-fail.html"];
    pass.into_iter().chain(fail).map(report).collect()
}

#[test]
fn every_report_has_its_verdict_and_nothing_remote() {
    let dir = tempfile::tempdir().unwrap();
    let pages = reports(dir.path());
    for page in &pages {
        let html = std::fs::read_to_string(page).unwrap();
        let word = if page.to_str().unwrap().ends_with("fail.html") { "</span> FAIL" } else { "</span> " };
        assert!(html.contains(word), "{}", page.display());
        for remote in ["http:", "https:", "src=", "@import", "url("] {
            let bare = html.replace("http://www.w3.org/2000/svg", "");
            assert!(!bare.contains(remote), "{}: {remote}", page.display());
        }
        assert!(!html.contains(dir.path().to_str().unwrap()), "{}: names the folder", page.display());
        assert!(!html.contains("NaN"), "{}", page.display());
    }
}

#[test]
#[ignore = "needs Chromium"]
fn a_browser_shows_every_report_without_a_complaint() {
    let dir = tempfile::tempdir().unwrap();
    let pages = reports(dir.path());
    let browser = chromium().expect("Chromium");
    for page in &pages {
        let opened = open(browser, page, 1200, false);
        assert!(opened.dom.contains("<main>"), "{}", page.display());
        assert_eq!(opened.console, Vec::<String>::new(), "{}", page.display());
        for (width, dark) in [(1200, false), (1200, true), (500, true), (360, false)] {
            let opened = measured(browser, page, width, dark);
            let title = opened.dom.split_once("<title>").unwrap().1.split_once("</title>").unwrap().0.to_owned();
            let scheme = if dark { "dark" } else { "light" };
            assert_eq!(title, format!("measured {width} {scheme}: all well"), "{}", page.display());
            assert_eq!(opened.console, Vec::<String>::new(), "{}", page.display());
        }
    }
}

#[test]
fn a_report_never_replaces_what_exists_or_is_being_read() {
    let dir = tempfile::tempdir().unwrap();
    let m = model("llama-mha");
    let page = dir.path().join("r.html");
    std::fs::write(&page, "mine").unwrap();
    let verify = |page: &Path, more: &[&str]| {
        let mut args = vec!["verify".to_owned(), m.join("adapter").display().to_string()];
        args.extend(["--against".to_owned(), m.join("adapter").display().to_string()]);
        args.extend(["--report".to_owned(), page.display().to_string()]);
        args.extend(more.iter().map(|s| s.to_string()));
        ptplus(args)
    };
    assert_eq!(exit(&verify(&page, &[])), 2);
    assert_eq!(std::fs::read_to_string(&page).unwrap(), "mine");
    assert_eq!(exit(&verify(&page, &["--force"])), 0);
    assert!(std::fs::read_to_string(&page).unwrap().contains("PASS"));
    let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["r.html"]);
}

#[test]
fn force_replaces_nothing_that_the_command_reads_or_writes() {
    let dir = tempfile::tempdir().unwrap();
    let m = model("llama-mha");
    let (base, out) = (dir.path().join("base"), dir.path().join("out.gguf"));
    std::fs::create_dir(&base).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(m.join("base").join(name), base.join(name)).unwrap();
    }
    let text = |path: &Path| path.display().to_string();
    let refused = |command: &str, report: &Path, more: &[String]| {
        let mut args = vec![command.to_owned(), text(&m.join("adapter")), "--base".into(), text(&base)];
        args.extend_from_slice(more);
        args.extend(["--report".into(), text(report), "--force".into()]);
        let out = ptplus(args);
        assert_eq!(exit(&out), 2, "{command}: {}", stderr(&out));
        assert!(stderr(&out).contains("[output-is-input]"), "{command}: {}", stderr(&out));
    };
    // Names that a report may have, and that are taken all the same.
    let out = out.with_extension("html");
    std::fs::write(base.join("notes.html"), "mine").unwrap();
    let convert = ["--to".to_owned(), "gguf".into(), "-o".into(), text(&out)];
    refused("convert", &out, &convert);
    assert!(!out.exists(), "refused before the work");
    std::fs::write(&out, "mine").unwrap();
    refused("convert", &dir.path().join("base/../out.html"), &convert);
    assert_eq!(std::fs::read(&out).unwrap(), b"mine");
    refused("convert", &dir.path().join("folder/r.html"), &["-o".to_owned(), text(&dir.path().join("folder"))]);
    refused("convert", &base.join("notes.html"), &convert);
    refused("verify", &base.join("notes.html"), &["--against".to_owned(), text(&m.join("adapter"))]);
    assert_eq!(std::fs::read(base.join("notes.html")).unwrap(), b"mine");
}

#[test]
fn a_report_has_the_name_of_a_page() {
    let dir = tempfile::tempdir().unwrap();
    let adapter = model("llama-mha").join("adapter");
    let verify = |page: &Path| {
        let args =
            ["verify".into(), adapter.clone(), "--against".into(), adapter.clone(), "--report".into(), page.into()];
        ptplus(args.into_iter().chain(["--force".into()]))
    };
    for name in ["x.pdf", "x", "html", ".html", "x.html.gz"] {
        let out = verify(&dir.path().join(name));
        assert_eq!(exit(&out), 2, "{name}: {}", stderr(&out));
        assert!(stderr(&out).contains("--report: expected a name that ends in .html or .htm"), "{}", stderr(&out));
        assert!(!dir.path().join(name).exists(), "{name}");
    }
    for name in ["x.html", "x.HTM"] {
        assert_eq!(exit(&verify(&dir.path().join(name))), 0, "{name}");
    }
}

#[test]
fn the_result_says_where_the_report_is() {
    let dir = tempfile::tempdir().unwrap();
    let m = model("llama-mha");
    let page = dir.path().join("r.html");
    let base = ["--base".into(), m.join("base")];
    let against = ["--against".into(), m.join("adapter")];
    let out = |name: &str| ["-o".into(), dir.path().join(name)];
    let probe = ["--probe".into(), m.join("probe.safetensors")];
    let strict = ["--tolerance".into(), "max_abs=1e-12".into()];
    for (command, args, code) in [
        ("verify", against.to_vec(), 0),
        ("verify", [&base[..], &probe, &strict].concat(), 5),
        ("convert", [&base[..], &out("a.gguf")].concat(), 0),
        ("convert", [&base[..], &out("b.gguf"), &probe, &strict].concat(), 5),
        ("quantize", [&base[..], &out("c.gguf"), &["q8_0".into()]].concat(), 0),
        ("pack", [&base[..], &out("bundle")].concat(), 0),
    ] {
        let args =
            [&[PathBuf::from(command), m.join("adapter")], &args[..], &["--report".into(), page.clone()]].concat();
        let plain = ptplus(args.iter().chain([&"-q".into(), &"-f".into()]));
        assert_eq!(exit(&plain), code, "{args:?} {}", stderr(&plain));
        assert_eq!(stdout(&plain).lines().last(), Some(&*format!("report {}", page.display())), "{args:?}");
        let (code_json, document) = json(args.iter().chain([&"-f".into()]));
        assert_eq!((code_json, document["report"].as_str()), (code, page.to_str()), "{args:?}");
        assert_eq!(document["status"], if code == 0 { "ok" } else { "failed" });
    }
}

#[test]
fn what_fails_leaves_a_page_that_says_why_and_no_output() {
    let dir = tempfile::tempdir().unwrap();
    let m = model("llama-gqa");
    let path = |name: &str| m.join(name).display().to_string();
    let probe = path("probe.safetensors");
    let strict = ["--probe", &probe, "--tolerance", "max_abs=1e-12,mean_kl=1e-30"];
    for (i, (command, args, code, has_figures)) in [
        ("convert", &strict[..], "numbers-differ", true),
        ("pack", &strict[..], "numbers-differ", true),
        ("pack", &["--tolerance", "max_abs=1e-30", "--outtype", "q8_0"], "numbers-differ", true),
        ("convert", &["--outtype", "q4_0", "--max-error", "kl=1e-9"], "error-bound", true),
        ("convert", &["--outtype", "q4_0", "--max-error", "relative=1e-9"], "error-bound", false),
    ]
    .into_iter()
    .enumerate()
    {
        let (page, output) = (
            dir.path().join(format!("{i}.html")),
            dir.path().join(if command == "pack" { format!("{i}") } else { format!("{i}.gguf") }),
        );
        let (adapter, base) = (path("adapter"), path("base"));
        let mut all = vec![command, &adapter, "--base", &base, "--report", page.to_str().unwrap()];
        all.extend(["-o", output.to_str().unwrap()]);
        all.extend(args);
        let out = ptplus(&all);
        assert_eq!(exit(&out), 5, "{all:?}: {}", stderr(&out));
        assert!(!output.exists(), "{all:?}");
        let html = std::fs::read_to_string(&page).unwrap();
        assert!(html.contains("</span> FAIL</p>") && html.contains(&format!("[{code}]")), "{all:?}");
        assert!(section(&html, "Identity").contains("source: canonical"), "{all:?}");
        assert_eq!(html.contains("<dl class=\"figures\">"), has_figures, "{all:?}");
        if has_figures {
            assert!(html.contains("class=\"beyond\"") && section(&html, "Positions").contains("<svg"), "{all:?}");
        }
        assert!(!html.contains(dir.path().to_str().unwrap()) && !html.contains(&adapter), "{all:?}: names the folder");
    }
    // Other failures have nothing to show.
    let page = dir.path().join("none.html");
    let out =
        ptplus(["convert", &path("base/none"), "-o", "x", "--base", &path("base"), "--report", page.to_str().unwrap()]);
    assert_eq!(exit(&out), 1, "{}", stderr(&out));
    assert!(!page.exists());
}

/// What `quantize` to Q4_0 with a base writes on its page, with `more` arguments.
fn quantized(folder: &Path, more: &[&str]) -> (Output, String) {
    let (m, page) = (model("llama-gqa"), folder.join("page.html"));
    let mut args = vec!["quantize".into(), m.join("adapter").into_os_string(), "--base".into(), m.join("base").into()];
    args.extend(["-o".into(), folder.join("out.gguf").into(), "--report".into(), page.clone().into()]);
    args.extend(more.iter().map(Into::into));
    let out = ptplus(args);
    (out, std::fs::read_to_string(page).unwrap_or_default())
}

/// The HTML from a heading to the end of its section.
fn section<'a>(html: &'a str, title: &str) -> &'a str {
    let (_, rest) = html.split_once(&format!(">{title}</h2>")).unwrap_or_else(|| panic!("no section {title}"));
    rest.split_once("</section>").unwrap().0
}

/// The card of a figure.
fn card<'a>(html: &'a str, name: &str) -> &'a str {
    html.split_once(&format!("<dt>{name}</dt>")).unwrap().1.split_once("</div>").unwrap().0
}

#[test]
fn a_conversion_without_a_probe_shows_the_outputs_own_effect_and_its_positions() {
    let dir = tempfile::tempdir().unwrap();
    let (out, html) = quantized(dir.path(), &["q4_0", "--json", "-v"]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    let verbose: Value = serde_json::from_slice(&out.stdout).unwrap();
    let error = &verbose["output_error"];
    let (effect, found) = (error["effect"].as_f64().unwrap(), error["found_effect"].as_f64().unwrap());
    assert!(effect > 0.0 && found > 0.0 && effect != found, "{effect} {found}");
    let card = card(&html, "effect on the logits");
    assert!(card.contains(&format!("<dd>{found:.2}<small>reference {effect:.2}</small>")), "{card} {found} {effect}");
    let n = error["positions"].as_array().unwrap().len();
    assert_eq!(n, error["metrics"]["n_positions"].as_u64().unwrap() as usize);
    let positions = section(&html, "Positions");
    assert!(positions.contains("<svg") && positions.contains("The positions that differ most"), "{positions}");
    let (_, brief) = json([
        "convert",
        model("llama-gqa").join("adapter").to_str().unwrap(),
        "--base",
        model("llama-gqa").join("base").to_str().unwrap(),
        "--outtype",
        "q4_0",
        "-o",
        dir.path().join("b.gguf").to_str().unwrap(),
    ]);
    assert!(brief["output_error"]["metrics"].is_object() && brief["output_error"]["positions"].is_null(), "{brief}");
}

#[test]
fn two_bundles_stand_side_by_side() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let m = model("llama-gqa");
    let (base, adapter) = (m.join("base").to_str().unwrap().to_owned(), m.join("adapter").to_str().unwrap().to_owned());
    for (output, more) in
        [("a", ["--license", "mit", "--outtype", "f32"]), ("b.tar", ["--license", "<b>other", "--outtype", "q8_0"])]
    {
        let output = path(output);
        let args = [&["pack", &adapter, "--base", &base, "-o", &output], &more[..]].concat();
        assert_eq!(exit(&ptplus(args)), 0);
    }
    let out = ptplus(["diff", &path("a"), &path("b.tar"), "--report", &path("d.html")]);
    assert_eq!(exit(&out), 5, "{}", stderr(&out));
    let html = std::fs::read_to_string(path("d.html")).unwrap();
    let said = section(&html, "What they say");
    assert!(said.contains("mit") && said.contains("&lt;b&gt;other") && said.contains("differ"), "{said}");
    let proved = section(&html, "What was proved");
    assert!(proved.contains("mean KL") && proved.contains("its source"), "{proved}");
    assert!(
        section(&html, "Tensors").contains("F32 -&gt; Q8_0") && section(&html, "What they are").contains("feature_map")
    );
    assert_eq!(exit(&ptplus(["diff", &path("a"), &path("a"), "--report", &path("d.html")])), 2, "it exists");
    assert_eq!(exit(&ptplus(["diff", &path("a"), &path("a"), "--report", &path("d.html"), "--force"])), 0);
    assert!(std::fs::read_to_string(path("d.html")).unwrap().contains("The same adapter"));
    assert_eq!(exit(&ptplus(["diff", &path("a"), &path("a"), "--report", &path("a/d.html")])), 2, "in a bundle");
}

#[test]
fn what_is_the_same_has_no_plot_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let (m, page) = (model("llama-mha"), dir.path().join("r.html"));
    let args =
        ["verify".into(), m.join("adapter"), "--against".into(), m.join("adapter"), "--base".into(), m.join("base")];
    let out = ptplus(args.into_iter().chain(["--report".into(), page.clone()]));
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    let html = std::fs::read_to_string(page).unwrap();
    for title in ["Layers", "Positions", "Tensors"] {
        let section = section(&html, title);
        assert!(!section.contains("<svg") && !section.contains("behind the plot"), "{title}: {section}");
        assert!(section.contains("<summary>The numbers</summary>"), "{title}: {section}");
    }
    assert!(section(&html, "Positions").contains("exactly 0, which"));
}

#[test]
fn a_page_says_which_adapter_base_and_probe_it_is_about() {
    let dir = tempfile::tempdir().unwrap();
    let m = model("llama-gqa");
    let path = |name: &str| m.join(name).display().to_string();
    let probe = path("probe.safetensors");
    let (out, html) = quantized(dir.path(), &["q8_0", "--probe", &probe]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    let gguf = dir.path().join("out.gguf").display().to_string();
    let digest = json(["hash", &gguf]).1["digests"][0]["adapter"].clone();
    let sha = ptplus::digest::hex(&sha2::Sha256::digest(std::fs::read(&probe).unwrap()));
    let found = section(&html, "Identity");
    for (row, value) in [
        ("output: canonical", digest["canonical"].as_str().unwrap()),
        ("output: values", digest["values"].as_str().unwrap()),
        ("probe: SHA-256", &sha),
    ] {
        assert!(
            found.contains(&format!("{row}</td><td class=\"long\" data-column=\"value\">{value}</td>")),
            "{row} {value}: {found}"
        );
    }
    assert!(found.contains(">ptplus-base/1 config="), "{found}");
    let conventions = section(&html, "Conventions");
    assert!(conventions.contains(">row_order</td><td data-column=\"value\">norm</td>"), "{conventions}");
}

#[test]
fn a_bound_that_holds_is_a_verdict() {
    let dir = tempfile::tempdir().unwrap();
    for (i, (args, bounds)) in [
        (&["--auto", "KL=1e-3"][..], &["mean KL \u{2264} 1e-3"][..]),
        (&["q4_0", "--max-error", "kl=0.1"], &["mean KL \u{2264} 1e-1"]),
        (
            &["q8_0", "--max-error", "cosine=0.99", "--max-error", "relative=0.1"],
            &["cosine of each tensor \u{2265} 0.99", "relative error of each tensor \u{2264} 1e-1"],
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let folder = dir.path().join(i.to_string());
        std::fs::create_dir(&folder).unwrap();
        let (out, html) = quantized(&folder, args);
        assert_eq!(exit(&out), 0, "{}", stderr(&out));
        let verdict = format!("</span> PASS <small>{}</small>", bounds.join(", "));
        assert!(html.contains(&verdict), "{args:?}: {}", html.split_once("</header>").unwrap().0);
        assert!(!html.contains("no limit was set"), "{args:?}");
        assert!(bounds.iter().all(|b| html.contains(&format!("Within its bound: {b}, "))), "{args:?}");
        assert_eq!(card(&html, "mean KL, nats").contains("<small>limit "), bounds[0].contains("KL"), "{args:?}");
    }
    let (out, html) = quantized(dir.path(), &["q8_0"]);
    assert_eq!(exit(&out), 0);
    assert!(html.contains("</span> NOT JUDGED</p>") && html.contains("no limit was set"));
}

#[test]
fn the_output_is_drawn_among_the_other_types() {
    let dir = tempfile::tempdir().unwrap();
    for (i, (args, name)) in
        [(&["--auto", "KL=1e-3"][..], "--auto"), (&["q4_0"], "this output"), (&["q8_0"], "this output")]
            .into_iter()
            .enumerate()
    {
        let folder = dir.path().join(i.to_string());
        std::fs::create_dir(&folder).unwrap();
        let (out, html) = quantized(&folder, args);
        assert_eq!(exit(&out), 0, "{}", stderr(&out));
        let section = section(&html, "Size against error");
        let len = std::fs::metadata(folder.join("out.gguf")).unwrap().len();
        assert!(
            section.contains(&format!(">{name}</td><td class=\"n\" data-column=\"bytes\">{len}</td>")),
            "{section}"
        );
        // In both drawings, as the one triangle.
        assert_eq!(section.matches("<polygon").count(), 2, "{section}");
        assert!(section.contains("\u{25b2}</span> this output"), "{section}");
    }
}

#[test]
fn measuring_the_other_types_reports_its_progress_as_one_piece_of_work() {
    use ptplus::base::BaseModel;
    let m = model("llama-mha");
    let base = BaseModel::open(&m.join("base")).unwrap();
    for base in [Some(&base), None] {
        let steps = std::cell::RefCell::new(Vec::new());
        let progress = |done: usize, total: usize| steps.borrow_mut().push((done, total));
        let measure = ptplus::pipeline::Measure {
            prompts: ptplus::verify::Prompts::DEFAULT,
            device: &ptplus::runner::DeviceChoice::Cpu.open().unwrap(),
            progress: &progress,
        };
        let reading = ptplus::import::Options::default();
        let (types, _) =
            ptplus::report::alternatives(&m.join("adapter"), &reading, base, Some("llama"), &measure).unwrap();
        let steps = steps.into_inner();
        assert!(types.len() > 2 && steps.len() >= types.len(), "{} {steps:?}", types.len());
        assert!(steps.windows(2).all(|w| w[0].0 <= w[1].0 && w[0].1 == w[1].1), "{steps:?}");
        assert!(steps.last().is_some_and(|(done, total)| done == total), "{steps:?}");
    }
}

#[test]
fn every_figure_that_fails_the_proof_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let m = model("llama-mha");
    for (command, name) in [("convert", "a.gguf"), ("pack", "bundle")] {
        let out = dir.path().join(name);
        let mut args =
            vec![command.into(), m.join("adapter").into_os_string(), "-o".into(), out.clone().into_os_string()];
        args.extend(["--base".into(), m.join("base").into(), "--probe".into(), m.join("probe.safetensors").into()]);
        args.extend(["--tolerance".into(), "max_abs=1e-12,mean_kl=1e-30".into()]);
        let result = ptplus(args);
        assert_eq!(exit(&result), 5);
        let text = stderr(&result);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].contains("max_abs: expected at most 1.000e-12"), "{text}");
        assert!(lines[1].starts_with("  also mean_kl: expected at most 1.000e-30"), "{text}");
        assert!(!out.exists(), "{command}");
    }
}
