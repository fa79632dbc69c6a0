//! Which kind of node a root directory is.
//!
//! ```text
//! all required evidence there ─> less exact ones dropped ─> decided by what runs ─> one, or an error
//! ```

use std::fmt;

use super::{Evidence, Profile, Root, evidence::Scene};

/// A profile that matches, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The profile's name.
    pub name: String,
    /// What was seen.
    pub evidence: Vec<String>,
}

/// The profile of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detected<'a> {
    /// The profile.
    pub profile: &'a Profile,
    /// What was seen.
    pub evidence: Vec<String>,
}

/// Why a node has no profile.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DetectError {
    /// There is no such profile.
    #[error("no profile {name:?}; there are {}", known.join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// Nothing matches.
    #[error(
        "this is no node that Kybernate knows: under {root} there is neither {}; \
         name its kind with --profile, or its paths with --node KEY=VALUE",
        sought.join(", nor ")
    )]
    Nothing {
        /// Where.
        root: String,
        /// What would have told.
        sought: Vec<String>,
    },
    /// More than one matches.
    #[error(
        "this node may be one of several kinds; say which with --profile:{}",
        List(candidates)
    )]
    Ambiguous {
        /// What matches, and why.
        candidates: Vec<Candidate>,
    },
    /// Nodes of this kind can't be changed.
    #[error("this is a node of {title} ({}): {reason}", evidence.join(", "))]
    Refused {
        /// What the kind is called.
        title: String,
        /// What was seen.
        evidence: Vec<String>,
        /// Why not.
        reason: String,
    },
}

struct List<'a>(&'a [Candidate]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Candidate { name, evidence } in self.0 {
            write!(f, "\n  {name}: {}", evidence.join(", "))?;
        }
        Ok(())
    }
}

/// Finds the profile of a name. One that is refused is an error.
pub fn find<'a>(profiles: &'a [Profile], name: &str) -> Result<&'a Profile, DetectError> {
    let found = profiles.iter().find(|profile| profile.name == name);
    let profile = found.ok_or_else(|| DetectError::Unknown {
        name: name.into(),
        known: profiles.iter().map(|p| p.name.clone()).collect(),
    })?;
    match &profile.refused {
        None => Ok(profile),
        Some(_) => Err(refusal(profile, vec!["it was named".into()])),
    }
}

/// Tells the profile of the node whose root directory is `root`.
pub fn detect<'a>(profiles: &'a [Profile], root: &Root) -> Result<Detected<'a>, DetectError> {
    let scene = Scene::of(root);
    let mut matches: Vec<(&Profile, Vec<String>, bool)> = Vec::new();
    for profile in profiles {
        let mut evidence = Vec::new();
        let mut decided = false;
        let mut whole = true;
        for item in &profile.evidence {
            match item.seen(&scene) {
                Some(words) => {
                    evidence.push(words);
                    decided |= item.decides();
                }
                None => whole &= !item.is_required(),
            }
        }
        if whole {
            matches.push((profile, evidence, decided));
        }
    }
    let superseded: Vec<&String> = matches
        .iter()
        .flat_map(|(profile, ..)| &profile.supersedes)
        .collect();
    let mut left: Vec<_> = matches
        .iter()
        .filter(|(profile, ..)| !superseded.contains(&&profile.name))
        .collect();
    if left.iter().any(|(.., decided)| *decided) {
        left.retain(|(.., decided)| *decided);
    }
    match left.as_slice() {
        [] => Err(DetectError::Nothing {
            root: root.path().display().to_string(),
            sought: profiles
                .iter()
                .filter(|profile| profile.refused.is_none())
                .flat_map(|profile| profile.evidence.iter().filter(|e| e.is_required()).take(1))
                .map(Evidence::sought)
                .collect(),
        }),
        [(profile, evidence, _)] if profile.refused.is_some() => {
            Err(refusal(profile, evidence.clone()))
        }
        [(profile, evidence, _)] => Ok(Detected {
            profile,
            evidence: evidence.clone(),
        }),
        several => Err(DetectError::Ambiguous {
            candidates: several
                .iter()
                .map(|(profile, evidence, _)| Candidate {
                    name: profile.name.clone(),
                    evidence: evidence.clone(),
                })
                .collect(),
        }),
    }
}

fn refusal(profile: &Profile, evidence: Vec<String>) -> DetectError {
    DetectError::Refused {
        title: profile.title.clone(),
        evidence,
        reason: profile.refused.clone().unwrap_or_default(),
    }
}
