//! Whom archives are encrypted to, and what opens them.

use kybernate_age::{Identity, KeyFileError, read_identities};
use kybernate_config::Settings;

use super::{Finding, space};

const CHECK: &str = "encryption";

/// Looks at recipients, at the directory for small images, and at every file of identities.
pub fn examine(settings: &Settings) -> Vec<Finding> {
    let read = settings.restore.identities.iter();
    let identities = read.map(|file| read_identities(file)).collect();
    let recipients = settings.checkpoint.encrypt_to.len();
    let in_memory = space::is_on_tmpfs(&settings.checkpoint.work_dir);
    judge(recipients, in_memory, identities)
}

/// Judges; without recipients and identities there is nothing to tell.
fn judge(
    recipients: usize,
    in_memory: bool,
    identities: Vec<Result<Vec<Identity>, KeyFileError>>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    if recipients > 0 && !in_memory {
        findings.push(Finding::fail(
            CHECK,
            "checkpoint.encrypt_to is set, and checkpoint.work_dir is not on tmpfs",
            "set checkpoint.work_dir to a directory under /run or another tmpfs; every checkpoint \
             is refused until then",
        ));
    } else if recipients > 0 {
        let found = format!("archives are encrypted; recipients: {recipients}");
        findings.push(Finding::ok(CHECK, found));
    }
    let mut usable = 0;
    let files = identities.len();
    for read in identities {
        match read {
            Ok(identities) => usable += identities.len(),
            Err(error) => findings.push(Finding::warn(
                CHECK,
                error.to_string(),
                "mend it or take it out of restore.identities; no encrypted archive is restored \
                 until then",
            )),
        }
    }
    if files > 0 && usable > 0 {
        let found = format!("identities that open archives: {usable}");
        findings.push(Finding::ok(CHECK, found));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::{super::Level, *};

    #[test]
    fn what_refuses_checkpoints_and_restores_is_told() {
        let levels = |recipients, in_memory, identities| -> Vec<Level> {
            judge(recipients, in_memory, identities)
                .iter()
                .map(|finding| finding.level)
                .collect()
        };
        let none = || Err(KeyFileError::Empty { path: "/k".into() });
        let one = || Ok(vec![Identity::generate().unwrap()]);
        assert_eq!(levels(0, false, Vec::new()), []);
        assert_eq!(levels(1, true, Vec::new()), [Level::Ok]);
        assert_eq!(levels(1, false, Vec::new()), [Level::Fail]);
        assert_eq!(levels(0, true, vec![one()]), [Level::Ok]);
        assert_eq!(levels(0, true, vec![none()]), [Level::Warn]);
        let found = judge(2, true, vec![one(), none(), one()]);
        assert!(found[0].found.contains("recipients: 2"), "{found:?}");
        assert!(found[1].found.contains("/k"), "{found:?}");
        assert!(found[2].found.contains("archives: 2"), "{found:?}");
    }
}
