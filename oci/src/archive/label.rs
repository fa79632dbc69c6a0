//! What an encrypted archive says of itself to everybody, in a stanza of its age header:
//!
//! ```text
//! -> kybernate.io/archive 1
//! {"created":"…","id":"…","name":"…","pod":{"namespace":"…","name":"…"}}       JSON, in base64
//! ```
//!
//! Age leaves stanzas alone that it does not know. A node that encrypts can't read its own
//! archives, and still has to find out which of them are of one container, and how old they are.
//! Kubelet puts the same into their names. The header's MAC covers it, for those who have an
//! identity.

use kybernate_age::{Header, Stanza};
use serde::{Deserialize, Serialize};

use crate::manifest::Manifest;

const KIND: &str = "kybernate.io/archive";
const VERSION: &str = "1";

/// A container, and when its archive was taken. Empty where that is not known.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Label {
    /// When, as in the manifest, or a little earlier.
    pub created: String,
    /// The container's id.
    pub id: String,
    /// Its name in its pod.
    pub name: String,
    /// Its pod, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<LabelPod>,
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LabelPod {
    /// Its namespace in the cluster.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Label {
    /// What a manifest says.
    #[must_use]
    pub fn of(manifest: &Manifest) -> Self {
        let container = &manifest.container;
        Self {
            created: manifest.created.clone(),
            id: container.id.clone(),
            name: container.name.clone(),
            pod: container.pod.as_ref().map(|pod| LabelPod {
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
            }),
        }
    }

    pub(super) fn stanza(&self) -> Stanza {
        Stanza {
            words: vec![KIND.into(), VERSION.into()],
            body: serde_json::to_vec(self).expect("plain data becomes JSON"),
        }
    }

    /// The label in a header, if it has one that this release knows.
    pub(super) fn read(header: &Header) -> Option<Self> {
        let stanza = header.stanza(KIND)?;
        let known = stanza.words.get(1).is_some_and(|word| word == VERSION);
        known
            .then(|| serde_json::from_slice(&stanza.body).ok())
            .flatten()
    }
}
