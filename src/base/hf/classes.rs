//! The classes that `architectures` of `config.json` names.

use crate::base::config::{Family, Row};
use crate::base::fields::{Fields, describe};
use crate::error::Result;

/// Stems of classes in transformers, of families that are known here or not (`modeling_auto.py`): what stands before `Model`, `For...` or
/// `LMHeadModel`. A class that is nobody's is a fine-tune's own; `model_type` decides there.
const OTHERS: &str = "AfMoe Albert Apertus Arcee AyaVision BarkCausal Bart Bert BertGeneration BigBird BioGpt Bitnet Bloom \
    ChatGLM CTRL CodeGen Cohere Cohere2 Dbrx Deberta DebertaV2 Deepseek DeepseekV2 DeepseekV3 DiffLlama DistilBert \
    Doge Dots1 Electra Ernie Ernie4_5 Ernie4_5_Moe Exaone Exaone4 Falcon FalconH1 FalconMamba FlexOlmo Gemma Gemma2 Gemma3 \
    Gemma3Text Gemma3n GPT2 GPTBigCode GPTJ GPTNeo GPTNeoX GPTNeoXJapanese Glm Glm4 Glm4Moe GptOss Granite GraniteMoe \
    GraniteMoeHybrid GraniteMoeShared Helium HunYuanDenseV1 HunYuanMoEV1 InternLM InternLM2 InternLM3 Jamba JetMoe Lfm2 \
    Llama4 MBart MPNet MPT Mpt Mamba Mamba2 MiniCPM MiniCPM3 MiniMax Ministral Mistral3 ModernBert Nemotron \
    NemotronH OPT Olmo Olmo2 Olmo3 Olmoe OpenAIGPT Pegasus Persimmon Phi Phi4Multimodal Phimoe Qwen \
    Qwen2VL Qwen2_5_VL Qwen3Next Qwen3VL RWKV RecurrentGemma Reformer Roberta Rwkv SmolLM3 StableLm StableLmEpoch \
    Starcoder2 T5 Umt5 Whisper XLM XLMRoberta XLNet Xglm Zamba Zamba2";

/// Refuses a class of another family than `model_type` names: one of both is wrong.
pub(super) fn check(fields: &Fields, family: Family) -> Result<()> {
    let name = "architectures";
    for class in fields.list(name)?.value().unwrap_or_default() {
        let Some(text) = class.as_str() else {
            return Err(fields.invalid(name, format!("expected names of classes, found {}", describe(class))));
        };
        if is_of_another(stem(text), family) {
            return Err(
                fields.unsupported(name, format!("expected a class of model_type {family}, found {}", describe(class)))
            );
        }
    }
    Ok(())
}

/// Llama and Mistral are one architecture with the same tensors, and converted checkpoints mix the names; the window is
/// what `model_type` says.
fn is_of_another(stem: &str, family: Family) -> bool {
    let kind = |f: Family| (f.gguf_architecture(), f.0.experts.is_some());
    let differ = |f: &&Family| kind(**f) != kind(family);
    let others = Family::ALL.iter().filter(differ).flat_map(|f| f.0.class_stems).copied();
    !family.0.class_stems.contains(&stem) && others.chain(OTHERS.split_whitespace()).any(|other| other == stem)
}

/// Whether a repository's code is named as the family's was before transformers took it over: `modeling_phi3.Phi3ForCausalLM`,
/// behind the repository's name where that is another.
pub(super) fn is_own(class: &str, row: &Row) -> bool {
    let own = class.rsplit_once("--").map_or(class, |(_, own)| own);
    match own.split_once('.') {
        Some((module, class)) => {
            let is_module = |name: &&str| module.strip_prefix("modeling_") == Some(*name);
            row.model_types.iter().any(is_module) && row.class_stems.contains(&stem(class))
        }
        None => false,
    }
}

fn stem(class: &str) -> &str {
    let end = ["For", "LMHead", "Model", "PreTrained"].iter().filter_map(|part| class.find(part)).min();
    &class[..end.unwrap_or(class.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn family(name: &str) -> Family {
        Family::from_model_type(name).unwrap()
    }

    #[test]
    fn a_class_of_the_family_or_of_nobody_is_none_of_another() {
        for class in [
            "LlamaForCausalLM",
            "LLaMAForCausalLM",
            "LlamaForSequenceClassification",
            "LlamaModel",
            "MyRewardModel",
            "",
        ] {
            assert!(!is_of_another(stem(class), family("llama")), "{class}");
        }
        for class in ["Qwen3ForCausalLM", "Qwen3Model", "Qwen3ForTokenClassification"] {
            assert!(!is_of_another(stem(class), family("qwen3")), "{class}");
            assert!(is_of_another(stem(class), family("llama")), "{class}");
        }
        for class in ["GPT2LMHeadModel", "Qwen3MoeForCausalLM", "MistralForCausalLM", "T5ForConditionalGeneration"] {
            assert!(is_of_another(stem(class), family("qwen3")), "{class}");
        }
    }
}
