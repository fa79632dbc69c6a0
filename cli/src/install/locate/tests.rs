use std::fs;

use kybernate_config::profile::{all, find, resolve};

use super::*;

fn at(files: &[(&str, &str)], profile: &str, major: Option<u32>) -> Result<Located, LocateError> {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = dir.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let root = Root::new(dir.path());
    let all = all();
    let node = resolve(find(&all, profile).unwrap(), &root, &[])
        .unwrap()
        .node;
    locate(&root, &node, major, &|path| {
        Ok(root.exists(path).then(|| root.read(path).unwrap()))
    })
}

const CRI2: &str = "[plugins.'io.containerd.grpc.v1.cri']\nsandbox_image = 'x'\n";

#[test]
fn imports_are_used_only_where_they_merge() {
    let main = format!("version = 2\nimports = ['conf.d/*.toml']\n{CRI2}");
    let nvidia = format!("version = 2\n{CRI2}");
    let files = [
        ("/etc/containerd/config.toml", main.as_str()),
        ("/etc/containerd/conf.d/99-nvidia.toml", nvidia.as_str()),
        ("/etc/containerd/conf.d/README", "not TOML ["),
    ];
    let two = at(&files, "kubeadm", Some(2)).unwrap();
    assert_eq!(
        two.place,
        Place::DropIn("/etc/containerd/conf.d/kybernate.toml".into())
    );
    // 1.7 would replace the whole CRI section by ours: the last one is edited.
    for major in [Some(1), None] {
        let one = at(&files, "kubeadm", major).unwrap();
        assert_eq!(
            one.place,
            Place::Edit("/etc/containerd/conf.d/99-nvidia.toml".into())
        );
        assert_eq!(one.loaded.len(), 2);
    }
    let plain = at(&files[..1], "kubeadm", Some(1)).unwrap();
    assert_eq!(
        plain.place,
        Place::Edit("/etc/containerd/config.toml".into())
    );
}

#[test]
fn without_a_file_the_version_is_containerds() {
    let version = |major| at(&[], "containerd", major).unwrap().version;
    assert_eq!(
        [version(Some(2)), version(Some(1)), version(None)],
        [3, 2, 2]
    );
}

#[test]
fn version_1_is_edited_on_1_x_and_refused_on_2_x() {
    let files = [("/etc/containerd/config.toml", "[plugins.cri]\nx = 1\n")];
    assert_eq!(at(&files, "kubeadm", Some(1)).unwrap().version, 1);
    let err = at(&files, "kubeadm", Some(2)).unwrap_err().to_string();
    assert!(err.contains("config migrate"), "{err}");
}

#[test]
fn k3s_and_k0s_are_told_in_their_own_ways() {
    const MADE: &str = "/var/lib/rancher/k3s/agent/etc/containerd/config.toml";
    let dir = MADE.trim_end_matches("config.toml");
    let place = |text: &str| at(&[(MADE, text)], "k3s", None).unwrap().place;
    assert_eq!(
        place("version = 2\n"),
        Place::Template(format!("{dir}config.toml.tmpl").into())
    );
    assert_eq!(
        place("version = 3\n"),
        Place::Template(format!("{dir}config-v3.toml.tmpl").into())
    );
    let imports = format!("version = 3\nimports = ['{dir}config-v3.toml.d/*.toml']\n");
    assert_eq!(
        place(&imports),
        Place::DropIn(format!("{dir}config-v3.toml.d/kybernate.toml").into())
    );
    // 1.7 imports too, and would lose the base CRI section.
    let imports = format!("version = 2\nimports = ['{dir}config.toml.d/*.toml']\n{CRI2}");
    assert!(matches!(place(&imports), Place::Template(_)));
    assert!(matches!(
        at(&[], "k3s", None),
        Err(LocateError::NotStarted { .. })
    ));
    assert_eq!(
        at(&[], "k0s", Some(1)).unwrap().place,
        Place::DropIn("/etc/k0s/containerd.d/kybernate.toml".into())
    );
}

#[test]
fn stars_match_as_in_go() {
    assert!(glob("*.toml", "kybernate.toml"));
    assert!(glob("99-*.toml", "99-a.b.toml"));
    assert!(!glob("99-*.toml", "kybernate.toml"));
    assert!(!glob("*.toml", "kybernate.conf"));
    assert!(glob("a.toml", "a.toml") && !glob("a.toml", "b.toml"));
}

#[test]
fn a_broken_file_is_named() {
    let files = [("/etc/containerd/config.toml", "version = \n")];
    let err = at(&files, "kubeadm", None).unwrap_err().to_string();
    assert!(
        err.contains("/etc/containerd/config.toml") && err.contains("line 1"),
        "{err}"
    );
}
