//! The commands about encrypted archives, run as a user runs them.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use kybernate_age::Identity;
use kybernate_oci::{
    archive::{Encryption, Label, WriteOptions, Writer},
    manifest::{Container, Manifest},
};
use tempfile::TempDir;

struct Lab {
    dir: TempDir,
}

impl Lab {
    /// An archive for two recipients, and the key of one of them.
    fn new() -> Self {
        let lab = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        let (one, two) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        lab.key("key", &one, 0o600);
        lab.key("stranger", &Identity::generate().unwrap(), 0o600);
        lab.key("public", &one, 0o644);
        fs::write(lab.path("recipient"), one.recipient().to_string()).unwrap();
        let container = Container {
            id: "c1".into(),
            name: "counter".into(),
            ..Container::default()
        };
        let manifest = Manifest {
            created: "2026-01-02T03:04:05Z".into(),
            container,
            ..Manifest::default()
        };
        let encryption = Encryption {
            recipients: vec![one.recipient().clone(), two.recipient().clone()],
            label: Label::of(&manifest),
        };
        let file = File::create_new(lab.path("a")).unwrap();
        let mut writer = Writer::encrypted(file, WriteOptions::default(), &encryption).unwrap();
        writer.bytes("spec.dump", b"{\"secret\":1}").unwrap();
        writer.finish(manifest).unwrap();
        lab
    }

    fn key(&self, name: &str, identity: &Identity, mode: u32) {
        let path = self.path(name);
        fs::write(&path, &*identity.to_secret_text()).unwrap();
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs the command; words that begin with `@` are files of the lab.
    fn run(&self, line: &str) -> Output {
        let words = line.split(' ').map(|word| match word.strip_prefix('@') {
            Some(name) => self.path(name).display().to_string(),
            None => word.to_owned(),
        });
        Command::new(env!("CARGO_BIN_EXE_kybernate"))
            .args(words)
            .env("KYBERNATE_CONFIG", self.path("config.toml"))
            .output()
            .unwrap()
    }

    fn ok(&self, line: &str) -> String {
        let out = self.run(line);
        assert!(out.status.success(), "{line}: {out:?}");
        String::from_utf8(out.stdout).unwrap()
    }

    fn refused(&self, line: &str) -> String {
        let out = self.run(line);
        assert_eq!(out.status.code(), Some(1), "{line}: {out:?}");
        String::from_utf8(out.stderr).unwrap()
    }

    fn settings(&self, text: &str) {
        fs::write(self.path("config.toml"), text).unwrap();
    }
}

#[test]
fn every_command_takes_identities_from_flags_and_from_settings() {
    let lab = Lab::new();
    let commands = ["verify @a", "ls @a", "cat @a spec.dump", "extract @a @to"];
    for command in commands {
        let said = lab.refused(command);
        for part in ["2 recipients", "--identity", "restore.identities"] {
            assert!(said.contains(part), "{command}: {said}");
        }
        let said = lab.refused(&format!("{command} --identity @stranger"));
        assert!(
            said.contains("none of the 1 identities"),
            "{command}: {said}"
        );
        let said = lab.refused(&format!("{command} --identity @public"));
        assert!(
            said.contains("0644") && said.contains("chmod 0600"),
            "{said}"
        );
        lab.ok(&format!("{command} --identity @stranger --identity @key"));
        fs::remove_dir_all(lab.path("to")).ok();
    }
    let place = |name: &str| lab.path(name).display().to_string();
    lab.settings(&format!("[restore]\nidentities = [{:?}]\n", place("key")));
    for command in commands {
        lab.ok(command);
    }
    assert_eq!(lab.ok("cat @a spec.dump"), "{\"secret\":1}");
    // A flag is instead of the settings.
    lab.refused("verify @a --identity @stranger");
}

#[test]
fn inspect_tells_what_it_can() {
    let lab = Lab::new();
    let said = lab.ok("inspect @a");
    for part in [
        "to 2 recipients",
        "counter (c1)",
        "2026-01-02",
        "--identity",
    ] {
        assert!(said.contains(part), "{said}");
    }
    let said: serde_json::Value = serde_json::from_str(&lab.ok("inspect --json @a")).unwrap();
    assert_eq!(said["archive"]["encrypted_to"], 2);
    assert_eq!(said["label"]["name"], "counter");
    let why = said["not_opened"].as_str().unwrap();
    assert!(why.contains("--identity"), "{why}");
    let said = lab.ok("inspect @a --identity @key");
    assert!(
        said.contains("to 2 recipients") && said.contains("sha256:"),
        "{said}"
    );
    let said = lab.ok("inspect --json @a --identity @key");
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["archive"]["encrypted_to"], 2);
    assert_eq!(said["manifest"]["container"]["name"], "counter");
    lab.refused("inspect @a --identity @stranger");
}

#[test]
fn an_archive_that_is_damaged_for_who_can_read_it_does_not_inspect() {
    let lab = Lab::new();
    let place = lab.path("key").display().to_string();
    lab.settings(&format!("[restore]\nidentities = [{place:?}]\n"));
    lab.ok("inspect @a");
    let mut bytes = fs::read(lab.path("a")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(lab.path("a"), bytes).unwrap();
    lab.refused("inspect @a");
    lab.refused("inspect --json @a");
}

#[test]
fn decrypted_and_encrypted_again_it_is_the_same_archive_and_stays_signed() {
    let lab = Lab::new();
    let said = lab.ok("decrypt @a -o @plain --identity @key");
    assert!(said.contains("decrypted"), "{said}");
    let mode = |name: &str| fs::metadata(lab.path(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("plain"), 0o600);
    let digest = |line: &str| {
        let said = lab.ok(line);
        let at = said.find("sha256:").unwrap();
        said[at..at + 71].to_owned()
    };
    let expected = digest("verify @a --identity @key");
    assert_eq!(digest("verify @plain"), expected);
    let recipient = fs::read_to_string(lab.path("recipient")).unwrap();
    lab.ok(&format!("encrypt @plain -o @again --recipient {recipient}"));
    assert_eq!(mode("again"), 0o600);
    assert_eq!(digest("verify @again --identity @key"), expected);
    assert!(lab.ok("inspect @again").contains("to 1 recipient"));

    // A signature is over that digest.
    let private = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEIJ/x5TpMhLFeWtHCPf0ghczzaoPnW3zMwRMbv43bC6ac\n\
        -----END PRIVATE KEY-----\n";
    let public = "-----BEGIN PUBLIC KEY-----\n\
        MCowBQYDK2VwAyEAs4IQ3d9se6S+6Jk7s5CTW6ilKKzt85Ezdq1YhVHQux0=\n\
        -----END PUBLIC KEY-----\n";
    fs::write(lab.path("sign.key"), private).unwrap();
    fs::write(lab.path("sign.pub"), public).unwrap();
    lab.ok("sign @plain --key @sign.key");
    fs::copy(lab.path("plain.sig"), lab.path("again.sig")).unwrap();
    let said = lab.ok("verify @again --identity @key --key @sign.pub");
    assert!(said.contains("signed by"), "{said}");
}

#[test]
fn a_conversion_that_fails_leaves_nothing_and_replaces_nothing() {
    let lab = Lab::new();
    let names = || {
        let mut names: Vec<_> = fs::read_dir(lab.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    let before = names();
    assert!(lab.refused("decrypt @a -o @x").contains("--identity"));
    lab.refused("decrypt @a -o @x --identity @stranger");
    assert!(
        lab.refused("encrypt @a -o @x")
            .contains("checkpoint.encrypt_to")
    );
    let recipient = fs::read_to_string(lab.path("recipient")).unwrap();
    let said = lab.refused(&format!("encrypt @a -o @x --recipient {recipient}"));
    assert!(said.contains("encrypted already"), "{said}");
    assert!(
        lab.refused("decrypt @a -o @key --identity @key")
            .contains("--force")
    );
    assert_eq!(names(), before);
    let said = lab.run("encrypt @a -o @x --recipient age1nobody");
    assert!(String::from_utf8_lossy(&said.stderr).contains("age1nobody"));
    lab.ok("decrypt @a -o @recipient --force --identity @key");
    lab.ok("verify @recipient");
    assert_eq!(names(), before);
}

#[test]
fn a_setting_that_names_no_recipient_is_refused_by_name() {
    let lab = Lab::new();
    lab.settings("[checkpoint]\nencrypt_to = ['age1nobody']\n");
    let said = lab.refused("decrypt @a -o @x");
    assert!(
        said.contains("age1nobody") && said.contains("config.toml"),
        "{said}"
    );
    assert!(!Path::new(&lab.path("x")).exists());
}
