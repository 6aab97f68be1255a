use std::path::{Path, PathBuf};

use serde_json::json;

use super::password::PasswordArguments;
use super::ui::Ui;
use crate::error::{Result, escape};
use crate::format::bundle::{model_signing, place, signature};
use crate::format::output::{OutputFile, Overwrite};

#[derive(clap::Args)]
#[command(
    after_help = "Keys are those of minisign: `minisign -V` verifies what `ptplus pack --sign` signs, and `ptplus check --trusted-key` what `minisign -S` signs. The secret key's file is for its owner alone (mode 600). With --oms it is one for OpenSSF's model signing, in the form of OpenSSL.\n\nExample:\n  ptplus keygen publisher.key --password-file password\n  ptplus pack adapter --base model -o bundle --sign publisher.key \\\n      --password-file password\n  ptplus check bundle --trusted-key publisher.pub"
)]
pub struct Arguments {
    /// Secret key to write; the public one gets the same name with the ending .pub
    #[arg(value_name = "KEY", default_value = "ptplus.key")]
    key: PathBuf,
    /// Where to write the public key instead
    #[arg(long, value_name = "FILE")]
    public: Option<PathBuf>,
    /// A key for `pack --sign-oms` instead: P-256, in PEM, not encrypted
    #[arg(long, requires = "no_password")]
    oms: bool,
    #[command(flatten)]
    password: PasswordArguments,
    /// Replace existing keys
    #[arg(short, long)]
    force: bool,
}

pub fn run(a: &Arguments, ui: &Ui) -> Result<u8> {
    let public_path = a.public.clone().unwrap_or_else(|| a.key.with_extension("pub"));
    if public_path == a.key {
        return Err(super::usage("KEY", "expected another name than the public key's, which ends in .pub"));
    }
    let protection = a.password.for_new_key()?;
    let overwrite = if a.force { Overwrite::Force } else { Overwrite::Never };
    let inputs: Vec<&Path> = a.password.file().into_iter().collect();
    place::refuse_inside_bundle(&a.key)?;
    place::refuse_inside_bundle(&public_path)?;
    let secret_out = OutputFile::create_private(&a.key, overwrite, &inputs)?;
    let public_out = OutputFile::create(&public_path, overwrite, &inputs)?;
    let (secret_text, public_text, shown) = match a.oms {
        true => {
            let signer = model_signing::Signer::generate()?;
            (signer.to_pem()?, signer.public().to_pem()?, signer.public().hint()?)
        }
        false => {
            let keys = signature::generate(protection)?;
            (keys.secret, keys.public, keys.public_base64)
        }
    };
    secret_out.write_all_at(0, secret_text.as_bytes())?;
    public_out.write_all_at(0, public_text.as_bytes())?;
    secret_out.commit()?;
    public_out.commit()?;
    let (secret, public) = (escape(&a.key.to_string_lossy()), escape(&public_path.to_string_lossy()));
    let kind = if a.oms { "public_key_hint" } else { "public_key_base64" };
    let document = json!({ "secret_key": secret, "public_key": public, kind: shown });
    let text = format!("{secret}: secret key, keep it to yourself\n{public}: public key {shown}\n");
    ui.made(document, text);
    Ok(0)
}
