//! Sets of events, and which of them a runtime knows.
//!
//! A runtime rejects a plugin that subscribes to an event beyond those it knows. It does not
//! tell which these are, so they follow from its version:
//!
//! | NRI | containerd | last event |
//! |---|---|---|
//! | 0.3 to 0.9 | 1.7 to 2.1 | `REMOVE_CONTAINER` (11) |
//! | 0.10 and later | 2.2 and later | `VALIDATE_CONTAINER_ADJUSTMENT` (14), not served here |
//!
//! Only NRI 0.12 and later tell their own version, older ones the runtime's alone.

use std::ops::{BitAnd, BitOr};

use super::api::{ConfigureRequest, Event};

/// A set of events: bit `event - 1` for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Events(i32);

impl Events {
    /// No event. A runtime would take it for all events, so [`super::stub`] never sends it.
    pub const NONE: Self = Self(0);

    /// One event.
    #[must_use]
    pub const fn of(event: Event) -> Self {
        match event as i32 {
            0 => Self::NONE,
            number => Self(1 << (number - 1)),
        }
    }

    /// Every event up to this one.
    #[must_use]
    pub const fn up_to(last: Event) -> Self {
        Self((1 << (last as i32)) - 1)
    }

    /// The events that this runtime knows and that [`super::stub`] serves.
    ///
    /// Of a runtime that is not known only those that every runtime has.
    #[must_use]
    pub fn known_to(runtime: &ConfigureRequest) -> Self {
        let recent = match version(&runtime.NRI_version) {
            Some(nri) => nri >= (0, 10),
            None => {
                runtime.runtime_name == "containerd"
                    && version(&runtime.runtime_version).is_some_and(|found| found >= (2, 2))
            }
        };
        Self::up_to(if recent {
            Event::POST_UPDATE_POD_SANDBOX
        } else {
            Event::REMOVE_CONTAINER
        })
    }

    /// Whether the event is in the set.
    #[must_use]
    pub const fn contains(self, event: Event) -> bool {
        self.0 & Self::of(event).0 != 0
    }

    /// The number that stands for the set in a [`super::api::ConfigureResponse`].
    #[must_use]
    pub const fn bits(self) -> i32 {
        self.0
    }
}

impl BitOr for Events {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for Events {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// Major and minor version of texts like `2.1.9`, `v0.12.0` or `1.7.24~ds1`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.strip_prefix('v').unwrap_or(text).splitn(3, '.');
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next()?;
    let digits = minor
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(minor.len());
    Some((major, minor[..digits].parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime(name: &str, version: &str, nri: &str) -> Events {
        Events::known_to(&ConfigureRequest {
            runtime_name: name.into(),
            runtime_version: version.into(),
            NRI_version: nri.into(),
            ..Default::default()
        })
    }

    #[test]
    fn bits_are_those_of_the_protocol() {
        assert_eq!(Events::of(Event::RUN_POD_SANDBOX).bits(), 1);
        assert_eq!(Events::of(Event::CREATE_CONTAINER).bits(), 8);
        assert_eq!(Events::up_to(Event::REMOVE_CONTAINER).bits(), 0x7ff);
        assert_eq!(Events::up_to(Event::POST_UPDATE_POD_SANDBOX).bits(), 0x1fff);
        assert_eq!(Events::of(Event::UNKNOWN), Events::NONE);
    }

    #[test]
    fn a_runtime_is_not_asked_for_events_that_it_does_not_know() {
        let old = Events::up_to(Event::REMOVE_CONTAINER);
        let new = Events::up_to(Event::POST_UPDATE_POD_SANDBOX);
        for version in ["1.7.24~ds1", "1.7.24", "v2.1.9", "2.1.9+unknown", "2.0", ""] {
            assert_eq!(runtime("containerd", version, ""), old, "{version}");
        }
        for version in ["2.2.0", "v2.2.1", "2.3.4", "10.0.0"] {
            assert_eq!(runtime("containerd", version, ""), new, "{version}");
        }
        assert_eq!(runtime("cri-o", "1.36.0", ""), old);
        assert_eq!(runtime("cri-o", "1.36.0", "v0.12.0"), new);
        assert_eq!(runtime("containerd", "2.3.4", "0.9.0"), old);
        assert_eq!(runtime("containerd", "2.3.4", "(devel)"), new);
    }
}
