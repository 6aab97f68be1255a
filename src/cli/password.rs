//! Where the password of a secret key comes from. Nothing is asked where nobody can answer.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use super::usage;
use crate::error::{Code, Error, Result};
use crate::format::bundle::signature::Protection;
use crate::format::mmap::map_file;

/// minisign's own limit.
const MAX_PASSWORD_BYTES: usize = 1024;

#[derive(clap::Args)]
pub struct PasswordArguments {
    /// File whose first line is the password of the secret key
    #[arg(long, value_name = "FILE", conflicts_with = "no_password")]
    password_file: Option<PathBuf>,
    /// The secret key is not encrypted
    #[arg(long)]
    no_password: bool,
}

impl PasswordArguments {
    pub fn file(&self) -> Option<&Path> {
        self.password_file.as_deref()
    }

    pub fn is_without(&self) -> bool {
        self.no_password
    }

    /// For a key that is being made: one of the two must be said, unless a terminal is there to ask on.
    pub fn for_new_key(&self) -> Result<Protection> {
        match self.stated()? {
            Some(p) => Ok(p),
            None if std::io::stdin().is_terminal() => Ok(Protection::Ask),
            None => Err(usage(
                "--password-file",
                "expected --password-file or --no-password, found neither, and no terminal to ask on",
            )),
        }
    }

    /// For a key that exists.
    pub fn for_key(&self) -> Result<Protection> {
        let nobody = if std::io::stdin().is_terminal() { Protection::Ask } else { Protection::None };
        Ok(self.stated()?.unwrap_or(nobody))
    }

    fn stated(&self) -> Result<Option<Protection>> {
        if self.no_password {
            return Ok(Some(Protection::None));
        }
        let Some(path) = &self.password_file else { return Ok(None) };
        let bytes = map_file(path)?;
        let line = bytes.split(|b| *b == b'\n').next().unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match std::str::from_utf8(line) {
            Ok(text) if !text.is_empty() && text.len() <= MAX_PASSWORD_BYTES => {
                Ok(Some(Protection::Password(text.to_owned())))
            }
            _ => {
                let message =
                    format!("expected a password of 1 to {MAX_PASSWORD_BYTES} bytes in the first line, found none");
                Err(Error::new(Code::Usage, message).file(path))
            }
        }
    }
}
