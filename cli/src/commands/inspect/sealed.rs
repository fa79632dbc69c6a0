//! What an encrypted archive says to those who can't read it.

use std::io::Write as _;

use kybernate_config::size;
use kybernate_oci::archive::{Envelope, Label};
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
}

#[derive(Debug, Serialize)]
struct Facts {
    path: String,
    archive_bytes: u64,
    encrypted_to: usize,
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
