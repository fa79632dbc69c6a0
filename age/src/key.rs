//! Keys as text: Bech32 (BIP-173) of 32 bytes, `age1…` and `AGE-SECRET-KEY-1…`.

use std::{fmt, str::FromStr};

use bech32::{Bech32, Hrp, primitives::decode::CheckedHrpstring};
use serde::{Deserialize, Serialize};
use x25519_dalek::{X25519_BASEPOINT_BYTES, x25519};
use zeroize::Zeroizing;

const RECIPIENT: &str = "age";
const IDENTITY: &str = "age-secret-key-";

/// Why a text is no key. It is not repeated where it may be a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No recipient.
    #[error(
        "{text:?} is no age recipient: {reason}; `age-keygen -y KEYFILE` prints the recipient of a \
         key, which begins with age1"
    )]
    Recipient {
        /// What is there.
        text: String,
        /// Why it is none.
        reason: &'static str,
    },
    /// A secret key where a recipient belongs.
    #[error(
        "a secret key stands where a recipient belongs, and is to be replaced wherever it has been \
         read; `age-keygen -y KEYFILE` prints the recipient of a key, which begins with age1"
    )]
    Secret,
    /// No identity.
    #[error(
        "no age identity: {reason}; `age-keygen` writes them as AGE-SECRET-KEY-1 and what follows"
    )]
    Identity {
        /// Why it is none.
        reason: &'static str,
    },
}

/// Whether somewhere in a text a secret key may stand, so that it is not to be repeated.
#[must_use]
pub fn may_hold_secret(text: &str) -> bool {
    text.to_ascii_lowercase().contains(IDENTITY)
}

/// Whoever an archive is encrypted to: a public key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Recipient([u8; 32]);

impl Recipient {
    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for Recipient {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        if may_hold_secret(text) {
            return Err(KeyError::Secret);
        }
        let refuse = |reason| KeyError::Recipient {
            text: text.to_owned(),
            reason,
        };
        let key = Self(decode(RECIPIENT, text).map_err(refuse)?);
        if key.to_string() != text {
            return Err(refuse("it is not spelled as such keys are"));
        }
        // A point of low order gives the same secret with every key: none.
        if x25519([8; 32], key.0) == [0; 32] {
            return Err(refuse("anybody could read what is encrypted to it"));
        }
        Ok(key)
    }
}

impl TryFrom<String> for Recipient {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, KeyError> {
        text.parse()
    }
}

impl From<Recipient> for String {
    fn from(recipient: Recipient) -> Self {
        recipient.to_string()
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bech32::encode_lower_to_fmt::<Bech32, _>(f, Hrp::parse_unchecked(RECIPIENT), &self.0)
            .map_err(|_| fmt::Error)
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What opens what was encrypted to its recipient: a secret key.
#[derive(Clone)]
pub struct Identity {
    secret: Zeroizing<[u8; 32]>,
    recipient: Recipient,
}

impl Identity {
    /// A new one.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn generate() -> std::io::Result<Self> {
        let mut secret = Zeroizing::new([0; 32]);
        getrandom::fill(secret.as_mut_slice())?;
        Ok(Self::from_secret(secret))
    }

    fn from_secret(secret: Zeroizing<[u8; 32]>) -> Self {
        let recipient = Recipient(x25519(*secret, X25519_BASEPOINT_BYTES));
        Self { secret, recipient }
    }

    /// Its public half.
    #[must_use]
    pub fn recipient(&self) -> &Recipient {
        &self.recipient
    }

    /// It as `age-keygen` writes it.
    #[must_use]
    pub fn to_secret_text(&self) -> Zeroizing<String> {
        let text =
            bech32::encode_upper::<Bech32>(Hrp::parse_unchecked(IDENTITY), self.secret.as_slice());
        Zeroizing::new(text.unwrap_or_default())
    }

    /// The secret that it has in common with a share.
    pub(crate) fn shared(&self, share: [u8; 32]) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(x25519(*self.secret, share))
    }
}

impl FromStr for Identity {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let refuse = |reason| KeyError::Identity { reason };
        let secret = Zeroizing::new(decode(IDENTITY, text).map_err(refuse)?);
        let identity = Self::from_secret(secret);
        if *identity.to_secret_text() != text {
            return Err(refuse("it is not spelled as such keys are"));
        }
        Ok(identity)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity of {}", self.recipient)
    }
}

/// The 32 bytes of a key with the human-readable part `kind`.
fn decode(kind: &str, text: &str) -> Result<[u8; 32], &'static str> {
    const FOREIGN: [&str; 5] = ["ssh-", "age1pq1", "age1tag", "age1yubikey1", "age-plugin-"];
    let lower = text.to_ascii_lowercase();
    if FOREIGN.iter().any(|start| lower.starts_with(start)) {
        return Err("only plain X25519 keys are known here, no SSH, plugin or post-quantum keys");
    }
    if !lower.starts_with(kind) {
        return Err("it does not begin as one");
    }
    let checked = CheckedHrpstring::new::<Bech32>(text)
        .map_err(|_| "a character is wrong, missing or too many")?;
    if !checked.hrp().as_str().eq_ignore_ascii_case(kind) {
        return Err("it is a key of another kind");
    }
    let mut key = [0; 32];
    if checked.byte_iter().len() != key.len() {
        return Err("it has not the length of one");
    }
    key.iter_mut()
        .zip(checked.byte_iter())
        .for_each(|(to, from)| *to = from);
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 32 times 0x42, from the tests of `rage`.
    const SECRET: &str =
        "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX";

    #[test]
    fn keys_read_back_as_they_are_written() {
        let identity = Identity::generate().unwrap();
        let (public, secret) = (identity.recipient().to_string(), identity.to_secret_text());
        assert!(public.starts_with("age1") && secret.starts_with("AGE-SECRET-KEY-1"));
        assert_eq!(&public.parse::<Recipient>().unwrap(), identity.recipient());
        let again: Identity = secret.parse().unwrap();
        assert_eq!(again.recipient(), identity.recipient());
        assert_ne!(
            Identity::generate().unwrap().recipient(),
            identity.recipient()
        );
    }

    #[test]
    fn what_is_no_recipient_is_named() {
        let good = Identity::generate().unwrap().recipient().to_string();
        let mut typo = good.clone();
        typo.replace_range(10..11, if &good[10..11] == "q" { "p" } else { "q" });
        let zero = Recipient([0; 32]).to_string();
        for (text, part) in [
            (typo.as_str(), "character"),
            (&good[..30], "character"),
            (&good.to_uppercase(), "spelled"),
            ("ssh-ed25519 AAAA", "SSH"),
            ("age1pq1xyz", "post-quantum"),
            ("node-key", "begin"),
            ("", "begin"),
            (zero.as_str(), "anybody"),
        ] {
            let error = text.parse::<Recipient>().unwrap_err().to_string();
            assert!(error.contains(part) && error.contains(text), "{error}");
        }
    }

    #[test]
    fn a_secret_in_the_wrong_place_is_not_repeated() {
        let secret = Identity::generate().unwrap().to_secret_text();
        let error = secret.parse::<Recipient>().unwrap_err();
        assert_eq!(error, KeyError::Secret);
        // The whole file of one, as a shell's `$(cat FILE)` passes it.
        let file = format!("# created: 2026-01-02\n{}\n", secret.to_lowercase());
        assert_eq!(file.parse::<Recipient>().unwrap_err(), KeyError::Secret);
        let mut typo = secret.to_string();
        typo.replace_range(20..22, "!!");
        let error = typo.parse::<Identity>().unwrap_err().to_string();
        assert!(!error.contains(&typo[22..]), "{error}");
    }

    #[test]
    fn an_identity_shows_only_its_public_half() {
        let identity: Identity = SECRET.parse().unwrap();
        assert_eq!(
            identity.recipient().to_string(),
            "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj"
        );
        let text = format!("{identity:?}");
        assert!(text.contains("age1") && !text.contains("SECRET"), "{text}");
    }
}
