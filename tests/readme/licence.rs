//! The licence goes with the package, and its notice with every file that is made to be copied.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::pages::ROOT;

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn the_package_has_both_licences_whole() {
    let root = Path::new(ROOT);
    assert!(text(&root.join("Cargo.toml")).contains("license = \"MIT OR Apache-2.0\""));
    let (mit, apache) = (text(&root.join("LICENSE-MIT")), text(&root.join("LICENSE-APACHE")));
    for part in ["Copyright (c) ", "free of charge", "The above copyright notice", "THE SOFTWARE IS PROVIDED \"AS IS\""]
    {
        assert!(mit.contains(part), "LICENSE-MIT lacks {part:?}");
    }
    for part in ["Version 2.0, January 2004", "3. Grant of Patent License", "END OF TERMS AND CONDITIONS"] {
        assert!(apache.contains(part), "LICENSE-APACHE lacks {part:?}");
    }
    let list = Command::new(env!("CARGO"))
        .args(["package", "--list", "--allow-dirty", "--offline"])
        .current_dir(root)
        .output()
        .expect("cargo runs");
    assert!(list.status.success(), "{}", String::from_utf8_lossy(&list.stderr));
    let packed = String::from_utf8(list.stdout).expect("names in UTF-8");
    for file in ["LICENSE-MIT", "LICENSE-APACHE"] {
        assert!(packed.lines().any(|l| l == file), "the package lacks {file}");
    }
}

#[test]
fn files_that_are_made_to_be_copied_begin_with_the_notice() {
    let root = Path::new(ROOT);
    let of_folder = |name: &str| {
        let entries = std::fs::read_dir(root.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        entries.map(|e| e.expect("an entry").path()).collect::<Vec<PathBuf>>()
    };
    let copied = [of_folder("csrc"), of_folder("include")].concat();
    assert!(copied.len() >= 2, "{copied:?}");
    for file in copied {
        let start: Vec<String> = text(&file).lines().take(3).map(str::to_owned).collect();
        assert!(
            start.join("\n").contains("SPDX-License-Identifier: MIT OR Apache-2.0")
                && start.join("\n").contains("Copyright (c) "),
            "{} begins without the notice: {start:?}",
            file.display()
        );
    }
}
