//! Detached Ed25519 signatures in minisign's format, so that `minisign -V` verifies ours and we verify its.
//!
//! ```text
//!   untrusted comment: signature from ptplus secret key
//!   base64("ED", key id, Ed25519 over BLAKE2b-512 of the manifest)
//!   trusted comment: ptplus bundle
//!   base64(Ed25519 over signature and trusted comment)
//! ```
//!
//! The first line is covered by no signature, so only the texts that programs write there are accepted.

use std::io::Cursor;
use std::ops::Range;
use std::path::Path;

use blake2::{Blake2b512, Digest as _};
use ct_codecs::{Base64, Decoder as _, Encoder as _};
use minisign::{KeyPair, PError, PublicKeyBox, SecretKey, SecretKeyBox, SignatureBox};

use crate::error::{Code, Error, Result};
use crate::format::mmap::map_file;

/// A public key of minisign's format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey(minisign::PublicKey);

impl PublicKey {
    /// Reads the line of base64 in a public key's file.
    ///
    /// # Errors
    ///
    /// [`Code::KeyInvalid`], also for a key of another algorithm than Ed25519.
    pub fn from_base64(text: &str) -> Result<PublicKey> {
        let invalid = |why: String| Error::new(Code::KeyInvalid, format!("expected a public key, {why}"));
        let key = minisign::PublicKey::from_base64(text).map_err(|e| invalid(format!("found none: {e}")))?;
        if !key.to_bytes().starts_with(b"Ed") {
            return Err(invalid("found one of another algorithm".into()));
        }
        Ok(PublicKey(key))
    }

    /// The number that minisign shows for the key: 16 hexadecimal digits.
    pub fn id(&self) -> String {
        self.0.keynum().iter().rev().map(|b| format!("{b:02X}")).collect()
    }

    fn of(secret: &SecretKey, path: &Path) -> Result<PublicKey> {
        minisign::PublicKey::from_secret_key(secret).map(PublicKey).map_err(|e| unusable(path, e))
    }
}

/// Where a secret key file states what its password costs, after algorithms and salt.
const OPS_LIMIT: Range<usize> = 38..46;
const MEMORY_LIMIT: Range<usize> = 46..54;
/// What minisign writes: libsodium's `OPSLIMIT_SENSITIVE` and `MEMLIMIT_SENSITIVE` of scrypt.
const MOST_OPS: u64 = 33_554_432;
const MOST_MEMORY: u64 = 1 << 30;

const UNTRUSTED_COMMENT: &str = "signature from ptplus secret key";
/// What ptplus, minisign and rsign write in the first line.
const UNTRUSTED_COMMENTS: [&str; 3] =
    [UNTRUSTED_COMMENT, "signature from minisign secret key", "signature from rsign secret key"];
/// No time: what it signs has none either.
const TRUSTED_COMMENT: &str = "ptplus bundle";
const SECRET_KEY_COMMENT: &str = "ptplus encrypted secret key";
const PLAIN_KEY_COMMENT: &str = "ptplus secret key, not encrypted";
/// Bytes of a key or signature file. Both have some 300.
const MAX_FILE_BYTES: usize = 16 << 10;

/// How a secret key is protected.
#[derive(Clone, PartialEq, Eq)]
pub enum Protection {
    /// By nothing but its file's mode.
    None,
    /// Encrypted under this password.
    Password(String),
    /// Encrypted under a password that the user is asked for on the terminal.
    Ask,
}

/// Texts of a new key pair: the secret key's file and the public key's.
pub struct KeyFiles {
    /// For nobody else's eyes.
    pub secret: String,
    /// For everybody.
    pub public: String,
    /// The public key alone, as `minisign -P` takes it.
    pub public_base64: String,
}

/// Makes a key pair.
///
/// # Errors
///
/// [`Code::KeyInvalid`] where the system gives no random numbers or the user no password.
pub fn generate(protection: Protection) -> Result<KeyFiles> {
    let failed = |e: PError| Error::new(Code::KeyInvalid, e.to_string());
    let (pair, comment) = match protection {
        Protection::None => (KeyPair::generate_unencrypted_keypair().map_err(failed)?, PLAIN_KEY_COMMENT),
        Protection::Password(p) => (KeyPair::generate_encrypted_keypair(Some(p)).map_err(failed)?, SECRET_KEY_COMMENT),
        Protection::Ask => (KeyPair::generate_encrypted_keypair(None).map_err(failed)?, SECRET_KEY_COMMENT),
    };
    Ok(KeyFiles {
        secret: pair.sk.to_box(Some(comment)).map_err(failed)?.into_string(),
        public: pair.pk.to_box().map_err(failed)?.into_string(),
        public_base64: pair.pk.to_base64(),
    })
}

/// A secret key that can sign.
pub struct Signer {
    secret: SecretKey,
    public: PublicKey,
}

impl Signer {
    /// Opens a secret key's file.
    ///
    /// # Errors
    ///
    /// [`Code::KeyInvalid`] for a file that is none; [`Code::KeyPassword`] for a password that is missing or
    /// wrong.
    pub fn open(path: &Path, protection: Protection) -> Result<Signer> {
        let text = read_text(path)?;
        if let Some(secret) = plain_key_of_minisign(&text) {
            return Ok(Signer { public: PublicKey::of(&secret, path)?, secret });
        }
        let key = SecretKeyBox::from(text.clone());
        let plain = key.clone().into_unencrypted_secret_key();
        let secret = match (plain, protection) {
            (Ok(secret), _) => secret,
            (Err(e), _) if !e.to_string().contains("encrypted") => return Err(unusable(path, e)),
            (Err(_), Protection::None) => {
                let message = "expected a password, since this key is encrypted: --password-file";
                return Err(Error::new(Code::KeyPassword, message).file(path));
            }
            (Err(_), protection) => {
                check_cost(&text, path)?;
                let password = match protection {
                    Protection::Password(p) => Some(p),
                    _ => None,
                };
                key.into_secret_key(password).map_err(|e| Error::new(Code::KeyPassword, e.to_string()).file(path))?
            }
        };
        let public = PublicKey::of(&secret, path)?;
        Ok(Signer { secret, public })
    }

    /// The public key that belongs to it, as `minisign -P` takes it.
    pub fn public_base64(&self) -> String {
        self.public.0.to_base64()
    }

    /// The text of a signature file for `data`, the same every time, and verified once before it is given out.
    ///
    /// Signed here and not by `minisign::sign`, which puts random numbers into its signatures: packing twice would give
    /// two bundles.
    ///
    /// # Errors
    ///
    /// [`Code::KeyInvalid`] for a key that cannot sign; [`Code::SignatureInvalid`] where its signature does not hold.
    pub fn sign(&self, data: &[u8]) -> Result<String> {
        let bytes = self.secret.to_bytes();
        let key = bytes.get(KEY).and_then(|k| ed25519_compact::SecretKey::from_slice(k).ok());
        let (Some(key), Some(key_id)) = (key, bytes.get(KEY_ID)) else {
            return Err(Error::new(Code::KeyInvalid, "expected a secret key, found none"));
        };
        let signature = key.sign(Blake2b512::digest(data), None);
        let line = base64([&b"ED"[..], key_id, signature.as_ref()].concat());
        let global = base64(key.sign([signature.as_ref(), TRUSTED_COMMENT.as_bytes()].concat(), None));
        let text =
            format!("untrusted comment: {UNTRUSTED_COMMENT}\n{line}\ntrusted comment: {TRUSTED_COMMENT}\n{global}\n");
        verify(&self.public, text.as_bytes(), data)?;
        Ok(text)
    }
}

/// Where a secret key's 158 bytes have its number and the key: after algorithms 6, salt 32 and limits 16.
const KEY_ID: Range<usize> = 54..62;
const KEY: Range<usize> = 62..126;

fn base64(bytes: impl AsRef<[u8]>) -> String {
    Base64::encode_to_string(bytes).expect("memory holds some 100 characters")
}

fn unusable(path: &Path, e: PError) -> Error {
    let message = "expected a secret key of minisign's format (ptplus keygen makes one), found another file";
    Error::new(Code::KeyInvalid, message).file(path).caused_by(e)
}

/// A key that `minisign -G -W` made. It leaves the checksum of a key without password empty, which the crate takes for
/// damage. Damage shows all the same: a signature is verified before it is given out.
fn plain_key_of_minisign(text: &str) -> Option<SecretKey> {
    // "Ed", no key derivation, "B2", salt and limits 48 bytes, key id 8, key 64, checksum 32.
    const LEN: usize = 158;
    let bytes = Base64::decode_to_vec(text.lines().nth(1)?, None).ok()?;
    let is_plain = bytes.len() == LEN && bytes.starts_with(b"Ed\0\0B2") && bytes[LEN - 32..].iter().all(|b| *b == 0);
    if is_plain { SecretKey::from_bytes(&bytes).ok() } else { None }
}

/// A public key, from its file or as the line of base64 in it.
///
/// # Errors
///
/// [`Code::KeyInvalid`]; those of opening the file.
pub fn public_key(text_or_path: &str) -> Result<PublicKey> {
    let path = Path::new(text_or_path);
    let invalid = |why: String| Error::new(Code::KeyInvalid, format!("expected a public key, {why}")).file(path);
    if minisign::PublicKey::from_base64(text_or_path).is_ok() {
        return PublicKey::from_base64(text_or_path).map_err(|e| e.file(path));
    }
    let of_file = PublicKeyBox::from(read_text(path)?).into_public_key();
    let key = of_file.map_err(|e| invalid(format!("found none: {e}")))?;
    PublicKey::from_base64(&key.to_base64()).map_err(|e| e.file(path))
}

/// Whether `signature`, a signature file, is `key`'s over `data`, byte for byte as the format says.
///
/// # Errors
///
/// [`Code::SignatureInvalid`].
pub fn verify(key: &PublicKey, signature: &[u8], data: &[u8]) -> Result<()> {
    let parsed = parse(signature)?;
    minisign::verify(&key.0, &parsed, Cursor::new(data), true, false, false).map_err(|e| invalid(e.to_string()))
}

/// Reads a signature file.
///
/// # Errors
///
/// [`Code::SignatureInvalid`] for one that differs from its own normal form.
pub(super) fn parse(signature: &[u8]) -> Result<SignatureBox> {
    if signature.len() > MAX_FILE_BYTES {
        return Err(invalid(format!("expected at most {MAX_FILE_BYTES} bytes, found {}", signature.len())));
    }
    let text = std::str::from_utf8(signature).map_err(|_| invalid("expected UTF-8, found an invalid byte".into()))?;
    // The crate cuts lines at fixed places; make sure that these are borders of characters.
    if !text.lines().nth(2).is_some_and(|l| l.starts_with("trusted comment: ")) {
        return Err(invalid("expected a trusted comment in the third line, found none".into()));
    }
    let parsed = SignatureBox::from_string(text).map_err(|e| invalid(e.to_string()))?;
    let comment = parsed.untrusted_comment().map_err(|e| invalid(e.to_string()))?;
    if !UNTRUSTED_COMMENTS.contains(&comment.as_str()) {
        let found = format!("expected one of {UNTRUSTED_COMMENTS:?} as untrusted comment, found {comment:?}");
        return Err(invalid(found));
    }
    // The crate takes the second signature for 64 bytes without looking; 88 characters of normal Base64 are.
    let is_whole = |line: &str| line.len() == 88 && line.ends_with("==");
    if !text.lines().nth(3).is_some_and(is_whole) {
        return Err(invalid("expected a signature of 64 bytes in the fourth line, found another".into()));
    }
    if parsed.trusted_comment().is_err() || parsed.to_string() != text {
        return Err(invalid("expected the normal form of a signature file, found another".into()));
    }
    Ok(parsed)
}

/// Refuses a key file that asks for more work than minisign's own: what it asks for decides how long the password is
/// worked on.
fn check_cost(text: &str, path: &Path) -> Result<()> {
    let bytes =
        text.lines().nth(1).and_then(|line| Base64::decode_to_vec(line.trim_end(), None).ok()).unwrap_or_default();
    let number = |at: Range<usize>| bytes.get(at).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    match (number(OPS_LIMIT), number(MEMORY_LIMIT)) {
        (Some(ops), Some(memory)) if ops <= MOST_OPS && memory <= MOST_MEMORY => Ok(()),
        _ => {
            let message = format!(
                "expected a password limit of at most {MOST_OPS} operations and {MOST_MEMORY} bytes, found another"
            );
            Err(Error::new(Code::KeyInvalid, message).file(path))
        }
    }
}

fn invalid(message: String) -> Error {
    Error::new(Code::SignatureInvalid, message)
}

fn read_text(path: &Path) -> Result<String> {
    let bytes = map_file(path)?;
    if bytes.len() > MAX_FILE_BYTES {
        let message = format!("expected a key of at most {MAX_FILE_BYTES} bytes, found {}", bytes.len());
        return Err(Error::new(Code::KeyInvalid, message).file(path));
    }
    let text = String::from_utf8(bytes.to_vec());
    text.map_err(|_| Error::new(Code::KeyInvalid, "expected a key in text, found other bytes").file(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signer(protection: Protection, dir: &Path) -> Signer {
        let files = generate(protection.clone()).unwrap();
        let path = dir.join("key");
        std::fs::write(&path, &files.secret).unwrap();
        let signer = Signer::open(&path, protection).unwrap();
        assert_eq!(signer.public_base64(), files.public_base64);
        assert_eq!(public_key(&files.public_base64).unwrap(), signer.public);
        signer
    }

    #[test]
    fn every_flipped_bit_of_a_signature_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let signer = signer(Protection::None, dir.path());
        let text = signer.sign(b"manifest").unwrap();
        assert!(!text.contains("timestamp"));
        verify(&signer.public, text.as_bytes(), b"manifest").unwrap();
        assert!(verify(&signer.public, text.as_bytes(), b"manifest2").is_err());
        for bit in 0..text.len() * 8 {
            let mut bad = text.clone().into_bytes();
            bad[bit / 8] ^= 1 << (bit % 8);
            let e = verify(&signer.public, &bad, b"manifest").unwrap_err();
            assert_eq!(e.code(), Code::SignatureInvalid, "bit {bit}");
        }
        for cut in 0..text.len() {
            assert!(verify(&signer.public, &text.as_bytes()[..cut], b"manifest").is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_key_that_asks_for_more_work_than_minisigns_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let password = Protection::Password("secret".into());
        signer(password.clone(), dir.path());
        let path = dir.path().join("key");
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let bytes = Base64::decode_to_vec(lines[1], None).unwrap();
        for (at, most) in [(OPS_LIMIT, MOST_OPS), (MEMORY_LIMIT, MOST_MEMORY)] {
            let mut bad = bytes.clone();
            bad[at].copy_from_slice(&(most + 1).to_le_bytes());
            let bad = Base64::encode_to_string(bad).unwrap();
            std::fs::write(&path, format!("{}\n{bad}\n", lines[0])).unwrap();
            let e = Signer::open(&path, password.clone()).err().unwrap();
            assert_eq!(e.code(), Code::KeyInvalid, "{e}");
        }
    }

    #[test]
    fn a_signature_of_another_length_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let signer = signer(Protection::None, dir.path());
        let text = signer.sign(b"manifest").unwrap();
        for line in [1, 3] {
            for n_bytes in [0, 1, 3, 10, 31, 32, 63, 65, 66, 73, 74, 75, 128] {
                let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
                let other = Base64::encode_to_string(vec![0x45; n_bytes]).unwrap();
                if other.len() == lines[line].len() {
                    continue;
                }
                lines[line] = other;
                let e = verify(&signer.public, (lines.join("\n") + "\n").as_bytes(), b"manifest").unwrap_err();
                assert_eq!(e.code(), Code::SignatureInvalid, "line {line}, {n_bytes} bytes");
            }
        }
    }

    #[test]
    fn another_key_does_not_verify() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (signer(Protection::None, dir.path()), signer(Protection::None, dir.path()));
        let text = a.sign(b"x").unwrap();
        assert_eq!(verify(&b.public, text.as_bytes(), b"x").unwrap_err().code(), Code::SignatureInvalid);
    }

    #[test]
    fn a_password_is_needed_and_must_be_right() {
        let dir = tempfile::tempdir().unwrap();
        signer(Protection::Password("secret".into()), dir.path());
        let path = dir.path().join("key");
        for wrong in [Protection::None, Protection::Password("Secret".into())] {
            assert_eq!(Signer::open(&path, wrong).err().unwrap().code(), Code::KeyPassword);
        }
        std::fs::write(&path, "untrusted comment: x\nAAAA\n").unwrap();
        assert_eq!(Signer::open(&path, Protection::None).err().unwrap().code(), Code::KeyInvalid);
        std::fs::write(&path, [0xff]).unwrap();
        assert_eq!(Signer::open(&path, Protection::None).err().unwrap().code(), Code::KeyInvalid);
        assert_eq!(public_key(path.to_str().unwrap()).unwrap_err().code(), Code::KeyInvalid);
    }
}
