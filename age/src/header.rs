//! The text at the head of an age file; [`crate`] draws it.

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD as BASE64};
use chacha20poly1305::{AeadInOut as _, ChaCha20Poly1305, KeyInit as _};
use hkdf::Hkdf;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use x25519_dalek::x25519;
use zeroize::Zeroizing;

use crate::{
    HEADER_MAX, TAG,
    key::{Identity, Recipient},
};

/// How files of every version begin.
pub(crate) const INTRO: &[u8] = b"age-encryption.org/";
const VERSION: &str = "age-encryption.org/v1";
const X25519: &str = "X25519";
const WRAP_INFO: &[u8] = b"age-encryption.org/v1/X25519";
/// Characters of a full line of base64.
const LINE: usize = 64;
const FILE_KEY: usize = 16;

/// The key that all others come from.
pub(crate) type FileKey = Zeroizing<[u8; FILE_KEY]>;

/// A header could not be made.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// Nobody could read the file.
    #[error("there is nobody to encrypt to")]
    NoRecipient,
    /// Too many recipients.
    #[error("a header with {recipients} recipients has {size} bytes, more than {HEADER_MAX}")]
    TooLarge {
        /// How many there are.
        recipients: usize,
        /// What they would take.
        size: usize,
    },
    /// No random numbers.
    #[error("the system has no random numbers: {0}")]
    Random(#[from] getrandom::Error),
}

/// Why a file does not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// A version to come.
    #[error("it is encrypted in the format {found:?}, and only {VERSION:?} is known here")]
    Version {
        /// What it says.
        found: String,
    },
    /// It is not as the format has it.
    #[error("its age header is damaged: {reason}")]
    Header {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Passphrases are not known here.
    #[error("it is encrypted with a passphrase; `age -d` opens it")]
    Passphrase,
    /// None of the identities is a recipient's.
    #[error(
        "it is encrypted to {}, and none of the {identities} identities given is one of them",
        in_words(*.recipients)
    )]
    Stranger {
        /// Recipients of the file.
        recipients: usize,
        /// Identities that were tried.
        identities: usize,
    },
}

/// `n` recipients, in words.
fn in_words(n: usize) -> String {
    match n {
        1 => "1 recipient".into(),
        n => format!("{n} recipients"),
    }
}

/// A part of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stanza {
    /// Its kind, and what follows in its line: words of visible ASCII.
    pub words: Vec<String>,
    /// Its content.
    pub body: Vec<u8>,
}

impl Stanza {
    fn is(&self, kind: &str) -> bool {
        self.words.first().is_some_and(|word| word == kind)
    }

    fn write(&self, to: &mut String) {
        to.push_str("->");
        for word in &self.words {
            to.push(' ');
            to.push_str(word);
        }
        to.push('\n');
        let text = BASE64.encode(&self.body);
        let mut rest = text.as_str();
        // A line that is not full is the last one, also if it is empty.
        while rest.len() >= LINE {
            to.push_str(&rest[..LINE]);
            to.push('\n');
            rest = &rest[LINE..];
        }
        to.push_str(rest);
        to.push('\n');
    }
}

/// A header that was read.
#[derive(Debug, Clone)]
pub struct Header {
    stanzas: Vec<Stanza>,
    mac: [u8; 32],
    /// What the MAC is over.
    covered: Vec<u8>,
    size: usize,
}

impl Header {
    /// Makes a file key and a header that gives it to `to`, with `more` stanzas after theirs, of
    /// kinds that nobody takes for a recipient's.
    pub(crate) fn make(
        to: &[Recipient],
        more: &[Stanza],
    ) -> Result<(FileKey, String), HeaderError> {
        if to.is_empty() {
            return Err(HeaderError::NoRecipient);
        }
        let mut key = FileKey::default();
        getrandom::fill(key.as_mut_slice())?;
        let mut text = format!("{VERSION}\n");
        for recipient in to {
            wrap(&key, recipient)?.write(&mut text);
        }
        more.iter().for_each(|stanza| stanza.write(&mut text));
        text.push_str("---");
        let mac = mac(&key, text.as_bytes()).finalize().into_bytes();
        text.push(' ');
        text.push_str(&BASE64.encode(mac));
        text.push('\n');
        if text.len() > HEADER_MAX {
            return Err(HeaderError::TooLarge {
                recipients: to.len(),
                size: text.len(),
            });
        }
        Ok((key, text))
    }

    /// Reads a header at the start of `bytes`, which may go on with anything.
    ///
    /// # Errors
    /// Another version; no header as the format has it within [`HEADER_MAX`] bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, OpenError> {
        let refuse = |reason| OpenError::Header { reason };
        let bytes = &bytes[..bytes.len().min(HEADER_MAX)];
        let mut lines = Lines { bytes, at: 0 };
        let version = lines.next().map_err(refuse)?;
        if version != VERSION {
            return Err(OpenError::Version {
                found: version.chars().take(LINE).collect(),
            });
        }
        let mut stanzas = Vec::new();
        loop {
            let start = lines.at;
            let line = lines.next().map_err(refuse)?;
            if let Some(mac) = line.strip_prefix("--- ") {
                let mac = BASE64
                    .decode(mac)
                    .ok()
                    .and_then(|mac| mac.try_into().ok())
                    .ok_or(refuse("its MAC is none"))?;
                if stanzas.is_empty() {
                    return Err(refuse("it has no recipient"));
                }
                return Ok(Self {
                    stanzas,
                    mac,
                    covered: bytes[..start + "---".len()].to_vec(),
                    size: lines.at,
                });
            }
            let words = line
                .strip_prefix("-> ")
                .ok_or(refuse("a line is no stanza"))?;
            stanzas.push(lines.stanza(words).map_err(refuse)?);
        }
    }

    /// Bytes that it takes in its file.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// How many X25519 recipients the file has.
    #[must_use]
    pub fn recipients(&self) -> usize {
        self.stanzas.iter().filter(|s| s.is(X25519)).count()
    }

    /// The first stanza of a kind. Nothing says that it is genuine until the header is opened.
    #[must_use]
    pub fn stanza(&self, kind: &str) -> Option<&Stanza> {
        self.stanzas.iter().find(|stanza| stanza.is(kind))
    }

    /// Gets the file key with one of the identities, and checks the header with it.
    pub(crate) fn open(&self, with: &[Identity]) -> Result<FileKey, OpenError> {
        let refuse = |reason| OpenError::Header { reason };
        if self.stanzas.iter().any(|stanza| stanza.is("scrypt")) {
            return Err(OpenError::Passphrase);
        }
        let mut found = None;
        for stanza in self.stanzas.iter().filter(|stanza| stanza.is(X25519)) {
            let wrapped = Wrapped::parse(stanza).map_err(refuse)?;
            for identity in with {
                let key = wrapped.open(identity).map_err(refuse)?;
                found = found.or(key);
            }
        }
        let key = found.ok_or(OpenError::Stranger {
            recipients: self.recipients(),
            identities: with.len(),
        })?;
        mac(&key, &self.covered)
            .verify_slice(&self.mac)
            .map_err(|_| refuse("its MAC is not over what it says"))?;
        Ok(key)
    }
}

/// Lines that end in `\n` alone.
struct Lines<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Lines<'a> {
    fn next(&mut self) -> Result<&'a str, &'static str> {
        let rest = &self.bytes[self.at..];
        let end = rest
            .iter()
            .position(|byte| *byte == b'\n')
            .ok_or("it has no end")?;
        self.at += end + 1;
        let visible = |byte: &u8| (b' '..=b'~').contains(byte);
        match std::str::from_utf8(&rest[..end]) {
            Ok(line) if line.bytes().all(|byte| visible(&byte)) => Ok(line),
            _ => Err("a line is no text"),
        }
    }

    /// The rest of a stanza whose first line has these words.
    fn stanza(&mut self, words: &str) -> Result<Stanza, &'static str> {
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        if words.iter().any(String::is_empty) {
            return Err("a stanza has an empty word");
        }
        let mut text = String::new();
        loop {
            let line = self.next()?;
            if line.len() > LINE {
                return Err("a line of a stanza is too long");
            }
            text.push_str(line);
            if line.len() < LINE {
                break;
            }
        }
        let body = BASE64
            .decode(text)
            .map_err(|_| "a stanza's content is not base64")?;
        Ok(Stanza { words, body })
    }
}

/// A file key in a stanza.
struct Wrapped {
    share: [u8; 32],
    body: [u8; FILE_KEY + TAG],
}

impl Wrapped {
    fn parse(stanza: &Stanza) -> Result<Self, &'static str> {
        let [_, share] = stanza.words.as_slice() else {
            return Err("an X25519 stanza has not one argument");
        };
        Ok(Self {
            share: BASE64
                .decode(share)
                .ok()
                .and_then(|share| share.try_into().ok())
                .ok_or("an X25519 stanza has no share")?,
            body: stanza
                .body
                .as_slice()
                .try_into()
                .map_err(|_| "an X25519 stanza has no wrapped key")?,
        })
    }

    /// The file key, if it is wrapped for this identity.
    fn open(&self, identity: &Identity) -> Result<Option<FileKey>, &'static str> {
        let shared = identity.shared(self.share);
        if *shared == [0; 32] {
            return Err("an X25519 stanza's share is a point of low order");
        }
        let cipher = wrapping(&shared, &self.share, identity.recipient());
        let mut key = FileKey::default();
        let (wrapped, tag) = self.body.split_at(FILE_KEY);
        key.copy_from_slice(wrapped);
        let tag = tag.try_into().map_err(|_| "an X25519 stanza has no tag")?;
        let opened =
            cipher.decrypt_inout_detached(&[0; 12].into(), &[], key.as_mut_slice().into(), tag);
        Ok(opened.is_ok().then_some(key))
    }
}

/// Wraps the file key for a recipient.
fn wrap(key: &FileKey, to: &Recipient) -> Result<Stanza, HeaderError> {
    let mut ephemeral = Zeroizing::new([0; 32]);
    getrandom::fill(ephemeral.as_mut_slice())?;
    let share = x25519(*ephemeral, x25519_dalek::X25519_BASEPOINT_BYTES);
    // Never zero: no recipient is a point of low order.
    let shared = Zeroizing::new(x25519(*ephemeral, *to.bytes()));
    let mut body = key.to_vec();
    let tag = wrapping(&shared, &share, to)
        .encrypt_inout_detached(&[0; 12].into(), &[], body.as_mut_slice().into())
        .expect("16 bytes are not too long");
    body.extend_from_slice(&tag);
    Ok(Stanza {
        words: vec![X25519.into(), BASE64.encode(share)],
        body,
    })
}

/// The cipher that wraps a file key. Its key is used once, so that its nonce may be zero.
fn wrapping(shared: &[u8; 32], share: &[u8; 32], to: &Recipient) -> ChaCha20Poly1305 {
    let salt = [*share, *to.bytes()].concat();
    let key = derive(shared, &salt, WRAP_INFO);
    ChaCha20Poly1305::new((&*key).into())
}

fn mac(key: &FileKey, covered: &[u8]) -> Hmac<Sha256> {
    let key = derive(key.as_slice(), &[], b"header");
    let mut mac = <Hmac<Sha256> as hmac::KeyInit>::new_from_slice(key.as_slice())
        .expect("a key of any size will do");
    mac.update(covered);
    mac
}

/// HKDF-SHA256.
pub(crate) fn derive(secret: &[u8], salt: &[u8], info: &[u8]) -> Zeroizing<[u8; 32]> {
    let mut key = Zeroizing::new([0; 32]);
    Hkdf::<Sha256>::new(Some(salt), secret)
        .expand(info, key.as_mut_slice())
        .expect("32 bytes are not too many");
    key
}

#[cfg(test)]
mod tests;
