//! `model.sig`: a signature of a bundle's files as OpenSSF's model signing has them, so that its program verifies ours and a
//! bundle is checked by the tools that check models.
//!
//! ```text
//!   sigstore bundle v0.3 (JSON)
//!     verificationMaterial.publicKey.hint      SHA-256 of the public key's PEM text
//!     dsseEnvelope.payload                     base64 of an in-toto statement:
//!       subject[0].digest.sha256               SHA-256 of the files' digests, one after the other
//!       predicate.resources                    each file with its SHA-256
//!       predicate.serialization.ignore_paths   what is not signed
//!     dsseEnvelope.signatures[0].sig           base64 of ECDSA P-256 over "DSSEv1 LEN TYPE LEN PAYLOAD"
//! ```
//!
//! Source: the Python package `model-signing` 1.1.1. A signature has no random part (RFC 6979).

use std::collections::BTreeMap;
use std::path::Path;

use ct_codecs::{Base64, Decoder as _, Encoder as _};
use p256::ecdsa::signature::{Signer as _, Verifier as _};
use p256::ecdsa::{DerSignature, SigningKey, VerifyingKey};
use p256::pkcs8::{
    DecodePrivateKey as _, DecodePublicKey as _, EncodePrivateKey as _, EncodePublicKey as _, LineEnding,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{CARD_FILE, MODEL_SIGNATURE_FILE};
use crate::digest::{hex, sorted_compact_json};
use crate::error::{Code, Error, Result};
use crate::format::json;
use crate::format::limits::{MANIFEST_BYTES, MANIFEST_VALUES};
use crate::format::mmap::map_file;

const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const PREDICATE_TYPE: &str = "https://model_signing/signature/v1.0";
/// What its owner may edit, as far as a list of names can say it, and what clones and downloads have.
const IGNORED: [&str; 15] = [
    MODEL_SIGNATURE_FILE,
    CARD_FILE,
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "LICENCE",
    "NOTICE",
    "NOTICE.md",
    "NOTICE.txt",
    "assets",
    ".cache",
    ".git",
    ".gitattributes",
];
/// Bytes of a key's file, which has some 300.
const MAX_KEY_BYTES: usize = 16 << 10;
/// Bytes of a signature's file: the manifest's digests in base64, and their names.
const MAX_SIGNATURE_BYTES: usize = 2 * MANIFEST_BYTES;

/// A public key: P-256, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// Reads the text of a PEM file.
    ///
    /// # Errors
    ///
    /// [`Code::KeyInvalid`], also for another curve than P-256.
    pub fn from_pem(text: &str) -> Result<PublicKey> {
        let key = VerifyingKey::from_public_key_pem(text.trim());
        key.map(PublicKey).map_err(|e| invalid_key("a public key in PEM, of the curve P-256").caused_by(e))
    }

    /// The PEM text, as OpenSSL writes it.
    ///
    /// # Errors
    ///
    /// [`Code::KeyInvalid`], which no key makes.
    pub fn to_pem(&self) -> Result<String> {
        self.0.to_public_key_pem(LineEnding::LF).map_err(|e| invalid_key("a public key").caused_by(e))
    }

    /// What names the key in a signature: the SHA-256 of its PEM text.
    ///
    /// # Errors
    ///
    /// Those of [`to_pem`](Self::to_pem).
    pub fn hint(&self) -> Result<String> {
        Ok(hex(&Sha256::digest(self.to_pem()?)))
    }
}

/// Whether a text is a key in PEM.
pub fn is_pem(text: &[u8]) -> bool {
    text.trim_ascii_start().starts_with(b"-----BEGIN ")
}

/// A secret key that can sign.
pub struct Signer(SigningKey);

impl Signer {
    /// Opens a secret key's file: PKCS #8 or, as `openssl ecparam` writes it, SEC 1.
    ///
    /// # Errors
    ///
    /// [`Code::KeyInvalid`] for a file that is none, or of another curve than P-256; [`Code::KeyPassword`] for one that is
    /// encrypted.
    pub fn open(path: &Path) -> Result<Signer> {
        let text = read_text(path)?;
        if text.contains("ENCRYPTED") {
            let message =
                "expected a key that is not encrypted: openssl pkey -in KEY -out PLAIN takes the password off";
            return Err(Error::new(Code::KeyPassword, message).file(path));
        }
        // OpenSSL may write the curve's parameters before the key.
        let key = text.find("-----BEGIN EC PRIVATE KEY").map_or(text.trim(), |at| text[at..].trim());
        let found = SigningKey::from_pkcs8_pem(key)
            .ok()
            .or_else(|| p256::SecretKey::from_sec1_pem(key).ok().map(SigningKey::from));
        found.map(Signer).ok_or_else(|| invalid_key("a secret key in PEM, of the curve P-256").file(path))
    }

    /// A new key.
    ///
    /// # Errors
    ///
    /// [`Code::KeyInvalid`] where the system gives no random numbers.
    pub fn generate() -> Result<Signer> {
        loop {
            let mut bytes = [0; 32];
            getrandom::fill(&mut bytes).map_err(|e| Error::new(Code::KeyInvalid, e.to_string()))?;
            // One in 2^32 is not below the group's order.
            if let Ok(key) = SigningKey::from_slice(&bytes) {
                return Ok(Signer(key));
            }
        }
    }

    /// The text of the secret key's file.
    ///
    /// # Errors
    ///
    /// [`Code::KeyInvalid`], which no key makes.
    pub fn to_pem(&self) -> Result<String> {
        let text = self.0.to_pkcs8_pem(LineEnding::LF);
        text.map(|t| t.to_string()).map_err(|e| invalid_key("a secret key").caused_by(e))
    }

    /// The public key that belongs to it.
    pub fn public(&self) -> PublicKey {
        PublicKey(*self.0.verifying_key())
    }

    /// The text of `model.sig` for files with these digests; the same every time, and verified once.
    ///
    /// # Errors
    ///
    /// [`Code::SignatureInvalid`] where it does not hold.
    pub fn sign(&self, name: &str, files: &BTreeMap<String, String>) -> Result<String> {
        let payload = statement(name, files);
        let signature: DerSignature = self.0.sign(&pre_authenticated(payload.as_bytes()));
        let text = envelope(&self.public().hint()?, &base64(&payload), &base64(signature.as_bytes()));
        verify(Some(&self.public()), text.as_bytes())?;
        Ok(text)
    }
}

/// What a signature says, once its own form is known to hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Signed {
    /// The signed files with their SHA-256.
    pub files: BTreeMap<String, String>,
    /// Names that are not signed; folders with all that is in them.
    pub ignored: Vec<String>,
    /// Whether it is byte for byte what [`Signer::sign`] writes.
    pub is_ours: bool,
}

/// Reads a signature, and verifies it with `key` where there is one.
///
/// # Errors
///
/// [`Code::SignatureInvalid`].
pub fn verify(key: Option<&PublicKey>, text: &[u8]) -> Result<Signed> {
    if text.len() > MAX_SIGNATURE_BYTES {
        return Err(invalid(format!("expected at most {MAX_SIGNATURE_BYTES} bytes, found {}", text.len())));
    }
    let document = json::parse_of(text, MANIFEST_VALUES).map_err(|e| invalid(e.message().to_owned()))?;
    let at = |pointer: &str| document.pointer(pointer).and_then(Value::as_str);
    let want = |pointer: &str, expected: &str| match at(pointer) {
        Some(found) if found == expected => Ok(()),
        _ => Err(invalid(format!("expected {expected:?} at {pointer}, found another"))),
    };
    want("/mediaType", MEDIA_TYPE)?;
    want("/dsseEnvelope/payloadType", PAYLOAD_TYPE)?;
    let part = |pointer: &str| at(pointer).ok_or_else(|| invalid(format!("expected a text at {pointer}, found none")));
    let (payload64, signature64) = (part("/dsseEnvelope/payload")?, part("/dsseEnvelope/signatures/0/sig")?);
    let decode = |text: &str| Base64::decode_to_vec(text, None).map_err(|e| invalid(format!("expected base64: {e}")));
    let (payload, signature) = (decode(payload64)?, decode(signature64)?);
    let hint = at("/verificationMaterial/publicKey/hint");
    if let Some(key) = key {
        let own = key.hint()?;
        if hint.is_some_and(|hint| hint != own) {
            return Err(invalid(format!("expected the key {}, found a signature by another", &own[..16])));
        }
        let held = DerSignature::from_bytes(&signature).and_then(|s| key.0.verify(&pre_authenticated(&payload), &s));
        held.map_err(|e| invalid("expected a signature by this key, found none that holds".into()).caused_by(e))?;
    }
    let statement_document = json::parse_of(&payload, MANIFEST_VALUES).map_err(|e| invalid(e.message().to_owned()))?;
    let signed = read_statement(&statement_document)?;
    let name = statement_document.pointer("/subject/0/name").and_then(Value::as_str).unwrap_or_default();
    let is_ours = payload == statement(name, &signed.files).as_bytes()
        && envelope(hint.unwrap_or_default(), payload64, signature64).as_bytes() == text;
    Ok(Signed { is_ours, ..signed })
}

fn read_statement(statement: &Value) -> Result<Signed> {
    for (pointer, expected) in [
        ("/_type", STATEMENT_TYPE),
        ("/predicateType", PREDICATE_TYPE),
        ("/predicate/serialization/method", "files"),
        ("/predicate/serialization/hash_type", "sha256"),
    ] {
        if statement.pointer(pointer).and_then(Value::as_str) != Some(expected) {
            return Err(invalid(format!("expected {expected:?} at {pointer} of the statement, found another")));
        }
    }
    let resources = statement.pointer("/predicate/resources").and_then(Value::as_array);
    let mut files = BTreeMap::new();
    let mut root = Sha256::new();
    for resource in resources.into_iter().flatten() {
        let text = |key: &str| resource.get(key).and_then(Value::as_str);
        let (Some(name), Some("sha256"), Some(digest)) = (text("name"), text("algorithm"), text("digest")) else {
            return Err(invalid("expected name, algorithm sha256 and digest of each file".into()));
        };
        let bytes = ct_codecs::Hex::decode_to_vec(digest, None).ok().filter(|b| b.len() == 32);
        root.update(bytes.ok_or_else(|| invalid(format!("expected a SHA-256 of {name:?}, found another text")))?);
        if files.insert(name.to_owned(), digest.to_owned()).is_some() {
            return Err(invalid(format!("expected each file once, found {name:?} twice")));
        }
    }
    if statement.pointer("/subject/0/digest/sha256").and_then(Value::as_str) != Some(&hex(&root.finalize())) {
        return Err(invalid("expected the digest of all digests as subject, found another".into()));
    }
    let ignored = statement.pointer("/predicate/serialization/ignore_paths").and_then(Value::as_array);
    let ignored = ignored.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    Ok(Signed { files, ignored, is_ours: false })
}

/// The in-toto statement about files, in the order in which paths of Python sort: part by part.
fn statement(name: &str, files: &BTreeMap<String, String>) -> String {
    let mut sorted: Vec<(&String, &String)> = files.iter().collect();
    sorted.sort_by_key(|(path, _)| path.split('/').collect::<Vec<_>>());
    let digests = sorted.iter().flat_map(|(_, digest)| ct_codecs::Hex::decode_to_vec(digest, None).unwrap_or_default());
    let root = hex(&Sha256::digest(digests.collect::<Vec<u8>>()));
    let resource =
        |(path, digest): &(&String, &String)| json!({ "name": path, "algorithm": "sha256", "digest": digest });
    sorted_compact_json(&json!({
        "_type": STATEMENT_TYPE,
        "subject": [{ "name": name, "digest": { "sha256": root } }],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": { "method": "files", "hash_type": "sha256", "allow_symlinks": false, "ignore_paths": IGNORED },
            "resources": sorted.iter().map(resource).collect::<Vec<_>>(),
        },
    }))
}

fn envelope(hint: &str, payload64: &str, signature64: &str) -> String {
    let mut text = sorted_compact_json(&json!({
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": { "publicKey": { "hint": hint }, "tlogEntries": [] },
        "dsseEnvelope": {
            "payload": payload64,
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{ "sig": signature64, "keyid": "" }],
        },
    }));
    text.push('\n');
    text
}

/// What is signed of a payload. Source: DSSE v1, "PAE".
fn pre_authenticated(payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

fn base64(bytes: impl AsRef<[u8]>) -> String {
    Base64::encode_to_string(bytes).expect("memory holds a text of this length")
}

fn invalid(message: String) -> Error {
    Error::new(Code::SignatureInvalid, message)
}

fn invalid_key(expected: &str) -> Error {
    Error::new(Code::KeyInvalid, format!("expected {expected}, found another text"))
}

fn read_text(path: &Path) -> Result<String> {
    let bytes = map_file(path)?;
    let text = (bytes.len() <= MAX_KEY_BYTES).then(|| String::from_utf8(bytes.to_vec()).ok()).flatten();
    text.ok_or_else(|| invalid_key("a key in PEM").file(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made with `openssl ecparam -name prime256v1 -genkey`.
    const SEC1: &str = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";

    fn files() -> BTreeMap<String, String> {
        let digest = |n: u8| hex(&[n; 32]);
        BTreeMap::from([
            ("adapter.gguf".into(), digest(1)),
            ("reports/a".into(), digest(2)),
            ("reports.json".into(), digest(3)),
        ])
    }

    #[test]
    fn sampled_flipped_bits_of_a_signature_are_noticed() {
        check_flips(5);
    }

    #[test]
    #[ignore = "seconds"]
    fn more_flipped_bits_of_a_signature_are_noticed() {
        check_flips(1);
    }

    /// Every `step`th bit, and every cut.
    fn check_flips(step: usize) {
        let signer = Signer::generate().unwrap();
        let text = signer.sign("b", &files()).unwrap();
        assert_eq!(text, signer.sign("b", &files()).unwrap(), "no random part");
        let signed = verify(Some(&signer.public()), text.as_bytes()).unwrap();
        assert!(signed.is_ours && signed.files == files(), "{signed:?}");
        assert!(verify(Some(&Signer::generate().unwrap().public()), text.as_bytes()).is_err());
        for bit in (0..text.len() * 8).step_by(step) {
            let mut bad = text.clone().into_bytes();
            bad[bit / 8] ^= 1 << (bit % 8);
            let read = verify(Some(&signer.public()), &bad);
            assert!(read.is_err() || read.is_ok_and(|s| !s.is_ours), "bit {bit}");
        }
        for cut in 0..text.len() {
            assert!(!verify(None, &text.as_bytes()[..cut]).is_ok_and(|s| s.is_ours), "cut at {cut}");
        }
    }

    #[test]
    fn files_sort_as_paths_of_python() {
        let text = statement("b", &files());
        let at = |name: &str| text.find(&format!("{name:?}")).unwrap();
        assert!(at("reports/a") < at("reports.json"), "{text}");
    }

    #[test]
    fn keys_are_those_of_openssl() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        let signer = Signer::generate().unwrap();
        let pem = signer.to_pem().unwrap();
        let sec1 = p256::SecretKey::from(signer.0.clone()).to_sec1_pem(LineEnding::LF).unwrap().to_string();
        for text in [pem.clone(), sec1.clone(), format!("{SEC1}{sec1}"), format!("\n{pem}\n")] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(Signer::open(&path).unwrap().public(), signer.public());
        }
        assert_eq!(PublicKey::from_pem(&signer.public().to_pem().unwrap()).unwrap(), signer.public());
        for (text, code) in [
            ("", Code::KeyInvalid),
            ("\u{0}", Code::KeyInvalid),
            ("-----BEGIN ENCRYPTED PRIVATE KEY-----", Code::KeyPassword),
            ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----", Code::KeyInvalid),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(Signer::open(&path).err().unwrap().code(), code, "{text}");
        }
        assert_eq!(PublicKey::from_pem("x").unwrap_err().code(), Code::KeyInvalid);
    }
}
