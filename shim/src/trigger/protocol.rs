//! The lines of the trigger socket; drawn in the head of [`super`].

use serde::{Deserialize, Serialize};

/// The longest line that a container may send, in bytes. The protocol's own are far shorter.
pub const LONGEST_LINE: usize = 1024;

/// What a container sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// It wants to be checkpointed.
    Checkpoint {},
    /// It wants to hear of checkpoints.
    Watch {},
    /// It is ready for the one that was announced.
    Ready {},
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reply {
    /// Whether it is done, or will be.
    pub ok: bool,
    /// The checkpoint that was begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When asking again makes sense.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u64>,
}

/// What a container that watches is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// A checkpoint comes. Stop what must not be in it, answer `ready`.
    Quiesce {
        /// Which.
        checkpoint: String,
        /// How long the node waits for the answer.
        timeout_ms: u64,
    },
    /// The processes run again: go on.
    Resume {
        /// Which checkpoint is behind them. One that was restored has none in this container.
        #[serde(skip_serializing_if = "Option::is_none")]
        checkpoint: Option<String>,
        /// Whether they were brought back from an archive, maybe on another node.
        restored: bool,
    },
    /// The checkpoint is complete, or has failed.
    End {
        /// Which.
        checkpoint: String,
        /// Whether there is an archive.
        ok: bool,
        /// The file's name, if the container has asked for it. The directory is the node's.
        #[serde(skip_serializing_if = "Option::is_none")]
        archive: Option<String>,
        /// Why there is none.
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
}

impl Reply {
    /// Yes.
    #[must_use]
    pub fn done() -> Self {
        Self {
            ok: true,
            checkpoint: None,
            error: None,
            retry_after_s: None,
        }
    }

    /// Yes, and this is its name.
    #[must_use]
    pub fn begun(checkpoint: String) -> Self {
        Self {
            checkpoint: Some(checkpoint),
            ..Self::done()
        }
    }

    /// No.
    #[must_use]
    pub fn refused(error: impl Into<String>) -> Self {
        Self {
            ok: false,
            error: Some(error.into()),
            ..Self::done()
        }
    }

    /// Not yet.
    #[must_use]
    pub fn later(error: impl Into<String>, retry_after_s: u64) -> Self {
        Self {
            retry_after_s: Some(retry_after_s),
            ..Self::refused(error)
        }
    }
}

/// Parses one line.
pub fn parse(line: &[u8]) -> Result<Request, serde_json::Error> {
    serde_json::from_slice(line)
}

/// One line, with its end.
#[must_use]
pub fn line(message: &impl Serialize) -> Vec<u8> {
    let mut text = serde_json::to_vec(message).expect("plain data becomes JSON");
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_parse_and_nothing_else_does() {
        for (text, request) in [
            (r#"{"op":"checkpoint"}"#, Request::Checkpoint {}),
            (r#" {"op":"watch"} "#, Request::Watch {}),
            (r#"{"op":"ready"}"#, Request::Ready {}),
        ] {
            assert_eq!(parse(text.as_bytes()).unwrap(), request);
        }
        for text in [
            "",
            "checkpoint",
            "{}",
            r#"{"op":"exec"}"#,
            r#"{"op":"checkpoint","path":"/etc/x"}"#,
            r#"[]"#,
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn lines_carry_what_there_is() {
        let text = |message: &Event| String::from_utf8(line(message)).unwrap();
        assert_eq!(
            String::from_utf8(line(&Reply::later("too early", 7))).unwrap(),
            "{\"ok\":false,\"error\":\"too early\",\"retry_after_s\":7}\n"
        );
        assert_eq!(
            text(&Event::Resume {
                checkpoint: None,
                restored: true
            }),
            "{\"event\":\"resume\",\"restored\":true}\n"
        );
        assert_eq!(
            text(&Event::End {
                checkpoint: "c".into(),
                ok: true,
                archive: Some("c.tar.zst".into()),
                error: None
            }),
            "{\"event\":\"end\",\"checkpoint\":\"c\",\"ok\":true,\"archive\":\"c.tar.zst\"}\n"
        );
    }
}
