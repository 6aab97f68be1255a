//! The lists of families in the documentation are those of the code.

use ptplus::base::{Family, RowOrder};

use crate::pages::ROOT;

fn page(name: &str) -> String {
    let text = std::fs::read_to_string(std::path::Path::new(ROOT).join(name)).unwrap();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn pages_list_the_families_that_there_are() {
    let families: Vec<&str> = Family::ALL.iter().map(|f| f.model_type()).collect();
    let list = families.join(", ");
    for (name, before, after) in [("README.md", "| **base models** | ", " (["), ("docs/FORMAT.md", "(families ", ";")] {
        assert!(page(name).contains(&format!("{before}{list}{after}")), "{name} lacks {before}{list}{after}");
    }
}

#[test]
fn pages_list_the_architectures_whose_row_order_is_known() {
    let (format, llama_cpp) = (page("docs/FORMAT.md"), page("docs/LLAMA_CPP.md"));
    let (_, known) = format.split_once("Known architectures: ").unwrap();
    let (norm, rest) = known.split_once(" are norm; ").unwrap();
    let (neox, _) = rest.split_once(" are neox.").unwrap();
    let (_, table) = llama_cpp.split_once("| `general.architecture` | row order |").unwrap();
    for architecture in RowOrder::known_architectures() {
        let quoted = format!("`{architecture}`");
        let is_norm = RowOrder::of_gguf_architecture(architecture) == Some(RowOrder::Norm);
        assert_eq!(
            (norm.contains(&quoted), neox.contains(&quoted)),
            (is_norm, !is_norm),
            "docs/FORMAT.md: {architecture}"
        );
        assert!(table.contains(&quoted), "docs/LLAMA_CPP.md: {architecture}");
    }
}
