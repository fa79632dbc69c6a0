//! What an encrypted archive says to those who can't read it.

use std::io::{ErrorKind, Write as _};

use kybernate_age::{KeyFileError, OpenError};
use kybernate_config::size;
use kybernate_oci::archive::{Envelope, Label, ReadError};
use serde::Serialize;

use crate::{
    args::Inspect,
    display::{chain, clean, columns},
    output::{Output, json},
};

#[derive(Debug, Serialize)]
struct Report<'a> {
    archive: Facts,
    /// Not genuine for certain: who can't read an archive can't check it.
    label: Option<&'a Label>,
    /// Why there is no more.
    not_opened: String,
}

#[derive(Debug, Serialize)]
struct Facts {
    path: String,
    archive_bytes: u64,
    encrypted_to: usize,
}

/// Whether an archive stays closed only because whoever asks has no key to it. One that is damaged
/// or forged is another matter.
pub fn wants_key(error: &anyhow::Error) -> bool {
    let no_key = matches!(
        error.downcast_ref(),
        Some(
            ReadError::Encrypted { .. }
                | ReadError::Locked {
                    source: OpenError::Stranger { .. }
                }
        )
    );
    // The settings' identities are root's alone.
    let hidden = matches!(
        error.downcast_ref(),
        Some(KeyFileError::Read { source, .. }) if source.kind() == ErrorKind::PermissionDenied
    );
    no_key || hidden
}

/// Prints it, and why there is no more.
pub fn show(args: &Inspect, envelope: &Envelope, closed: &anyhow::Error) -> anyhow::Result<()> {
    if args.json {
        json(&Report {
            archive: Facts {
                path: args.file.display().to_string(),
                archive_bytes: envelope.bytes,
                encrypted_to: envelope.recipients,
            },
            label: envelope.label.as_ref(),
            not_opened: chain(closed),
        })?;
        return Ok(());
    }
    let mut rows = vec![
        ["Archive".into(), clean(&args.file.display().to_string())],
        ["Encrypted".into(), readers(envelope.recipients)],
    ];
    if let Some(label) = &envelope.label {
        rows.push(["Created".into(), clean(&label.created)]);
        let container = format!("{} ({})", clean(&label.name), clean(&label.id));
        rows.push(["Container".into(), container]);
        if let Some(pod) = &label.pod {
            let pod = format!("{}/{}", clean(&pod.namespace), clean(&pod.name));
            rows.push(["Pod".into(), pod]);
        }
    }
    rows.push(["Size".into(), size::display(envelope.bytes)]);
    rows.push(["Not opened".into(), clean(&chain(closed))]);
    let mut out = Output::lock();
    out.write_all(columns(&rows).as_bytes())?;
    out.flush()?;
    Ok(())
}

/// For how many, in words.
pub fn readers(count: usize) -> String {
    format!("to {}", Envelope::readers(count))
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn only_a_missing_key_is_no_failure() {
        let wants = |error: ReadError| wants_key(&Err::<(), _>(error).context("a").unwrap_err());
        let locked = |source| ReadError::Locked { source };
        assert!(wants(locked(OpenError::Stranger {
            recipients: 2,
            identities: 1
        })));
        assert!(!wants(locked(OpenError::Header { reason: "forged" })));
        assert!(!wants(ReadError::Manifest { fault: "damaged" }));
        let read = |kind: ErrorKind| KeyFileError::Read {
            path: "/k".into(),
            source: kind.into(),
        };
        assert!(wants_key(&read(ErrorKind::PermissionDenied).into()));
        assert!(!wants_key(&read(ErrorKind::NotFound).into()));
    }
}
