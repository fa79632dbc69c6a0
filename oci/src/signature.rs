//! Signatures of archives: Ed25519 over the digest of the manifest, which covers every byte.
//!
//! ```text
//! <archive>.sig    one JSON object a line, one for each signer
//!   {"version":1,"manifest_sha256":"…","key":"…","signature":"…"}        hexadecimal
//! signed text      "kybernate archive 1\n" manifest_sha256 "\n"
//! key              sha256 of the 32 bytes of the public key: which key to look for
//! ```
//!
//! Keys are PEM files as `openssl genpkey -algorithm ed25519` and `openssl pkey -pubout` write them.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use ed25519_compact::{KeyPair, PublicKey, Signature};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::archive::hex;

mod beside;

pub use beside::{SIZE_MAX, read_beside};

/// Version of the format.
const VERSION: u32 = 1;

/// Why an archive counts as unsigned.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The text is no key.
    #[error(
        "{what} is no PEM file of an Ed25519 key: {reason}; `openssl genpkey -algorithm ed25519` \
         makes a private one, `openssl pkey -pubout` the public one"
    )]
    Key {
        /// Which key.
        what: &'static str,
        /// The parser's message.
        reason: String,
    },
    /// A line is not what this release writes.
    #[error("line {line} of the signatures does not parse: {reason}")]
    Format {
        /// Which line, from 1.
        line: usize,
        /// Why not.
        reason: String,
    },
    /// Nobody who is trusted has signed this archive.
    #[error(
        "no trusted key has signed the archive with manifest sha256:{manifest}; signed by {}",
        if .signers.is_empty() { "nobody".to_owned() } else { .signers.join(", ") }
    )]
    Untrusted {
        /// The archive's digest.
        manifest: String,
        /// Keys of the signatures that are there.
        signers: Vec<String>,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    version: u32,
    manifest_sha256: String,
    key: String,
    signature: String,
}

/// Where the signatures of an archive lie.
#[must_use]
pub fn place(archive: &Path) -> PathBuf {
    let mut name = OsString::from(archive);
    name.push(".sig");
    name.into()
}

/// Signs an archive: returns a line for its file of signatures.
pub fn sign(manifest_sha256: &str, private_key: &str) -> Result<String, SignatureError> {
    let pair = KeyPair::from_pem(private_key).map_err(|error| SignatureError::Key {
        what: "the private key",
        reason: error.to_string(),
    })?;
    let signature = pair.sk.sign(text(manifest_sha256), None);
    let line = Line {
        version: VERSION,
        manifest_sha256: manifest_sha256.into(),
        key: id(&pair.pk),
        signature: hex(signature.as_ref()),
    };
    Ok(serde_json::to_string(&line).expect("plain data becomes JSON") + "\n")
}

/// Looks for a signature by one of the trusted public keys in the text of a file of signatures.
/// Returns that key. A line that does not parse is an error only where no other one counts.
pub fn verify(
    manifest_sha256: &str,
    signatures: &str,
    trusted: &[String],
) -> Result<String, SignatureError> {
    let mut keys = Vec::new();
    for pem in trusted {
        let key = PublicKey::from_pem(pem).map_err(|error| SignatureError::Key {
            what: "a trusted key",
            reason: error.to_string(),
        })?;
        keys.push((id(&key), key));
    }
    let mut signers = Vec::new();
    let mut damaged = None;
    for (index, line) in signatures.lines().enumerate() {
        let parsed: Line = match serde_json::from_str(line) {
            Ok(parsed) => parsed,
            Err(error) => {
                damaged.get_or_insert_with(|| SignatureError::Format {
                    line: index + 1,
                    reason: error.to_string(),
                });
                continue;
            }
        };
        let good = keys.iter().any(|(id, key)| {
            parsed.version == VERSION
                && *id == parsed.key
                && parsed.manifest_sha256 == manifest_sha256
                && unhex(&parsed.signature)
                    .and_then(|bytes| Signature::from_slice(&bytes).ok())
                    .is_some_and(|signature| key.verify(text(manifest_sha256), &signature).is_ok())
        });
        if good {
            return Ok(parsed.key);
        }
        signers.push(parsed.key);
    }
    Err(damaged.unwrap_or_else(|| SignatureError::Untrusted {
        manifest: manifest_sha256.into(),
        signers,
    }))
}

fn text(manifest_sha256: &str) -> String {
    format!("kybernate archive {VERSION}\n{manifest_sha256}\n")
}

fn id(key: &PublicKey) -> String {
    hex(&Sha256::digest(key.as_ref()))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|pair| {
            let pair = std::str::from_utf8(pair)
                .ok()
                .filter(|pair| pair.len() == 2)?;
            u8::from_str_radix(pair, 16).ok()
        })
        .collect()
}

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
#[cfg(test)]
mod tests {
    use ed25519_compact::Seed;

    use super::*;

    const DIGEST: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
    /// Made by `openssl genpkey -algorithm ed25519`.
    const OPENSSL: &str = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEIEsND4w84nrIgFMWqfQz3vN3poLmNmjyw5Qt0zvyUQ3M\n\
        -----END PRIVATE KEY-----\n";

    fn keys(seed: u8) -> (String, String) {
        let pair = KeyPair::from_seed(Seed::new([seed; 32]));
        (pair.to_pem(), pair.pk.to_pem())
    }

    #[test]
    fn a_trusted_signature_counts_and_no_other() {
        let ((private, public), (other, stranger)) = (keys(1), keys(2));
        let line = sign(DIGEST, &private).unwrap();
        let both = sign(DIGEST, &other).unwrap() + &line;
        assert!(verify(DIGEST, &line, &[stranger.clone(), public.clone()]).is_ok());
        assert!(verify(DIGEST, &both, std::slice::from_ref(&public)).is_ok());
        let error = verify(DIGEST, &line, &[stranger]).unwrap_err();
        assert!(
            matches!(error, SignatureError::Untrusted { ref signers, .. } if signers.len() == 1)
        );
        assert!(
            verify(DIGEST, "", std::slice::from_ref(&public))
                .unwrap_err()
                .to_string()
                .contains("nobody")
        );
        assert!(verify(DIGEST, &line, &[]).is_err());
        // Another archive, or another text under the same key id.
        let else_ = DIGEST.replace('9', "8");
        assert!(verify(&else_, &line, std::slice::from_ref(&public)).is_err());
        let moved = line.replace(DIGEST, &else_);
        assert!(verify(&else_, &moved, &[public]).is_err());
    }

    #[test]
    fn damaged_signatures_and_keys_are_named() {
        let (private, public) = keys(1);
        let line = sign(DIGEST, &private).unwrap();
        let flipped = line.replace("\"signature\":\"", "\"signature\":\"00");
        assert!(verify(DIGEST, &flipped, std::slice::from_ref(&public)).is_err());
        let error = verify(DIGEST, "{}\n", std::slice::from_ref(&public)).unwrap_err();
        assert!(error.to_string().contains("line 1"), "{error}");
        assert!(
            sign(DIGEST, &public)
                .unwrap_err()
                .to_string()
                .contains("openssl")
        );
        assert!(verify(DIGEST, &line, &["x".into()]).is_err());
    }

    #[test]
    fn a_line_cut_short_does_not_hide_the_good_ones() {
        let ((private, public), (other, _)) = (keys(1), keys(2));
        let line = sign(DIGEST, &private).unwrap();
        let torn = format!("{}\n{}", &line[..20], sign(DIGEST, &other).unwrap());
        for text in [format!("{torn}{line}"), format!("{line}{torn}")] {
            assert!(verify(DIGEST, &text, std::slice::from_ref(&public)).is_ok());
        }
        let error = verify(DIGEST, &format!("{torn}{{}}\n"), &[public]).unwrap_err();
        assert!(matches!(error, SignatureError::Format { line: 1, .. }));
    }

    #[test]
    fn keys_of_openssl_are_taken() {
        assert!(sign(DIGEST, OPENSSL).is_ok());
    }

    #[test]
    fn hexadecimal_comes_back() {
        assert_eq!(unhex(&hex(&[0, 255, 16])), Some(vec![0, 255, 16]));
        assert_eq!((unhex("0"), unhex("zz")), (None, None));
    }
}
