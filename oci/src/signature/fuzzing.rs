//! Files of signatures that somebody made to be taken for good ones.

use std::sync::LazyLock;

use ed25519_compact::{KeyPair, Seed};

use super::{sign, verify};

const DIGEST: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
const OTHER: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Trusted, and not.
static KEYS: LazyLock<[KeyPair; 2]> =
    LazyLock::new(|| [1, 2].map(|n| KeyPair::from_seed(Seed::new([n; 32]))));

/// No text is a signature of another archive, and none is by a key that has signed nothing.
pub(crate) fn signature(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let trusted = KEYS[0].pk.to_pem();
    if let Ok(key) = verify(DIGEST, &text, std::slice::from_ref(&trusted)) {
        assert_eq!(key, super::id(&KEYS[0].pk));
    }
    assert!(verify(OTHER, &text, &[trusted]).is_err());
    let never = KeyPair::from_seed(Seed::new([3; 32])).pk.to_pem();
    assert!(verify(DIGEST, &text, &[never]).is_err());
    let _ = verify(DIGEST, &signatures_text(), &[text.into_owned()]);
}

fn signatures_text() -> String {
    KEYS.iter()
        .map(|pair| sign(DIGEST, &pair.to_pem()).unwrap())
        .collect()
}

pub(crate) fn signatures() -> Vec<Vec<u8>> {
    vec![
        signatures_text().into_bytes(),
        KEYS[0].pk.to_pem().into_bytes(),
        b"{}\n".to_vec(),
    ]
}
