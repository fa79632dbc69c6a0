//! Policies and what they make of containers.

use std::collections::HashMap;

use super::*;

fn annotations(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).into(), (*value).into()))
        .collect()
}

fn pod(handler: &str, pairs: &[(&str, &str)]) -> PodSandbox {
    PodSandbox {
        runtime_handler: handler.into(),
        annotations: annotations(pairs),
        ..Default::default()
    }
}

fn container(name: &str, pairs: &[(&str, &str)]) -> Container {
    Container {
        name: name.into(),
        annotations: annotations(pairs),
        ..Default::default()
    }
}

fn policy() -> Policy {
    Policy::new(&Settings::default()).unwrap()
}

const SOURCE: &str = "/var/lib/kybernate/a.tar.zst";

#[test]
fn settings_that_cannot_be_used_still_tell_the_class() {
    let class = |handlers: &[&str]| {
        Policy::of_class(&NriSettings {
            handlers: handlers.iter().map(|name| (*name).to_owned()).collect(),
            ..NriSettings::default()
        })
    };
    assert!(class(&["gpu", ""]).is_class(&pod("gpu", &[])));
    for handlers in [&[][..], &[""], &["gpu", ""]] {
        assert!(!class(handlers).is_class(&pod("", &[])));
    }
    assert!(class(&[""]).is_class(&pod("kybernate", &[])));
}

#[test]
fn foreign_pods_are_left_alone_whatever_their_annotations_say() {
    let annotated = [
        (RESTORE_FROM, "/etc/shadow"),
        ("restore.kybernate.io/app", "not a path"),
        (MANAGED, "x"),
    ];
    for handler in ["", "runc", "kybernate2", "Kybernate", "kybernat"] {
        let container = container("app", &annotated);
        assert_eq!(
            policy().adjust(&pod(handler, &annotated), &container),
            Ok(None)
        );
    }
}

#[test]
fn class_containers_are_marked_and_nothing_else() {
    let adjustment = policy()
        .adjust(&pod("kybernate", &[]), &container("app", &[]))
        .unwrap()
        .unwrap();
    assert_eq!(adjustment.annotations, annotations(&[(MANAGED, VERSION)]));
}

#[test]
fn the_restore_source_reaches_the_container_it_is_for_and_no_other() {
    let pod = pod("kybernate", &[("restore.kybernate.io/app", SOURCE)]);
    let annotations_of = |name| {
        policy()
            .adjust(&pod, &container(name, &[]))
            .unwrap()
            .unwrap()
            .annotations
    };
    assert_eq!(
        annotations_of("app").get(RESTORE_FROM).map(String::as_str),
        Some(SOURCE)
    );
    for other in ["ap", "app2", "", "sidecar"] {
        assert!(!annotations_of(other).contains_key(RESTORE_FROM), "{other}");
    }
}

#[test]
fn a_source_that_is_none_refuses_its_container_with_the_annotation_named() {
    let pod = pod("kybernate", &[("restore.kybernate.io/app", "/etc/shadow")]);
    let message = policy()
        .adjust(&pod, &container("app", &[]))
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("restore.kybernate.io/app") && message.contains("/etc/shadow"),
        "{message}"
    );
    assert!(policy().adjust(&pod, &container("sidecar", &[])).is_ok());
}

#[test]
fn a_pod_does_not_get_past_the_check_with_the_annotation_that_the_shim_obeys() {
    let bypass = [(RESTORE_FROM, SOURCE)];
    for on_container in [&bypass[..], &[]] {
        let refusal = policy()
            .adjust(&pod("kybernate", &bypass), &container("app", on_container))
            .unwrap_err();
        assert!(
            refusal.to_string().contains("restore.kybernate.io/app"),
            "{refusal}"
        );
        assert!(matches!(refusal, Refusal::Bypass { .. }));
    }
}

#[test]
fn a_source_that_the_container_brings_is_checked_like_any() {
    let adjust = |on_pod: &[_], source| {
        policy().adjust(
            &pod("kybernate", on_pod),
            &container("app", &[(RESTORE_FROM, source)]),
        )
    };
    let marked = annotations(&[(MANAGED, VERSION)]);
    assert_eq!(adjust(&[], SOURCE).unwrap().unwrap().annotations, marked);
    let same = [("restore.kybernate.io/app", SOURCE)];
    assert_eq!(adjust(&same, SOURCE).unwrap().unwrap().annotations, marked);
    assert!(matches!(
        adjust(&[], "/etc/shadow"),
        Err(Refusal::OwnSource(_))
    ));
    let other = "/var/lib/kybernate/b.tar.zst";
    assert!(matches!(adjust(&same, other), Err(Refusal::Two { .. })));
}

fn granting() -> Policy {
    let mut settings = Settings::default();
    settings.wishes.capabilities = vec!["SYS_PTRACE".into()];
    settings.trigger.allow = true;
    Policy::new(&settings).unwrap()
}

#[test]
fn granted_wishes_become_what_the_shim_obeys() {
    use kybernate_config::names::{ADD_CAPABILITIES, BLOCK_IO_URING, CRIU_OPTIONS, TRIGGER};
    let pod = pod(
        "kybernate",
        &[
            ("capabilities.kybernate.io/app", "sys_ptrace"),
            ("criu.kybernate.io", "timeout=5 , force-irmap"),
            ("block-io-uring.kybernate.io", "true"),
            ("block-io-uring.kybernate.io/other", "false"),
            ("trigger.kybernate.io/app", "true"),
        ],
    );
    let annotations_of = |name| {
        let adjusted = granting().adjust(&pod, &container(name, &[]));
        adjusted.unwrap().unwrap().annotations
    };
    assert_eq!(
        annotations_of("app"),
        annotations(&[
            (MANAGED, VERSION),
            (ADD_CAPABILITIES, "CAP_SYS_PTRACE"),
            (CRIU_OPTIONS, "timeout=5,force-irmap"),
            (BLOCK_IO_URING, "true"),
            (TRIGGER, "true"),
        ])
    );
    assert_eq!(
        annotations_of("other"),
        annotations(&[(MANAGED, VERSION), (CRIU_OPTIONS, "timeout=5,force-irmap")])
    );
}

#[test]
fn wishes_that_are_not_granted_or_do_not_parse_refuse_with_the_annotation_named() {
    for (key, value) in [
        ("capabilities.kybernate.io/app", "SYS_PTRACE"),
        ("capabilities.kybernate.io", "MUCH"),
        ("criu.kybernate.io/app", "libdir=/tmp"),
        ("criu.kybernate.io", "ghost-limit=1GiB"),
        ("block-io-uring.kybernate.io", "1"),
        ("gpu.kybernate.io", "yes"),
        ("trigger.kybernate.io", "true"),
    ] {
        let adjusted = policy().adjust(&pod("kybernate", &[(key, value)]), &container("app", &[]));
        let message = adjusted.unwrap_err().to_string();
        assert!(message.contains(key), "{message}");
        let foreign = policy().adjust(&pod("runc", &[(key, value)]), &container("app", &[]));
        assert_eq!(foreign, Ok(None));
    }
}

#[test]
fn no_pod_sets_what_the_shim_or_runc_obeys() {
    for key in OBEYED {
        let refusal = granting()
            .adjust(&pod("kybernate", &[(key, "true")]), &container("app", &[]))
            .unwrap_err();
        let message = refusal.to_string();
        assert!(
            message.contains(key) && message.contains(".kybernate.io/app"),
            "{message}"
        );
    }
}

#[test]
fn wishes_that_a_container_brings_are_judged_like_any() {
    use kybernate_config::names::ADD_CAPABILITIES;
    let adjust = |policy: Policy, wish: &[_], own| {
        policy.adjust(
            &pod("kybernate", wish),
            &container("app", &[(ADD_CAPABILITIES, own)]),
        )
    };
    let brings = adjust(granting(), &[], "SYS_PTRACE").unwrap().unwrap();
    assert_eq!(brings.annotations, annotations(&[(MANAGED, VERSION)]));
    assert!(matches!(
        adjust(policy(), &[], "SYS_PTRACE"),
        Err(Refusal::OwnWish { .. })
    ));
    let other = [("capabilities.kybernate.io", "SYS_PTRACE")];
    assert!(matches!(
        adjust(granting(), &other, ""),
        Err(Refusal::Two { .. })
    ));
}

#[test]
fn a_directory_can_be_of_the_pods_namespace() {
    let policy = policy()
        .with_drop_in("restore_dirs = ['/data/{namespace}']")
        .unwrap();
    let adjust = |namespace: &str, source: &str| {
        let mut pod = pod("kybernate", &[("restore.kybernate.io/app", source)]);
        pod.namespace = namespace.into();
        policy.adjust(&pod, &container("app", &[]))
    };
    assert!(adjust("a", "/data/a/x.tar.zst").is_ok());
    for (namespace, source) in [
        ("b", "/data/a/x.tar.zst"),
        ("a", "/data/{namespace}/x.tar.zst"),
        ("", "/data/x.tar.zst"),
        ("..", "/etc/shadow"),
        ("a/../b", "/data/b/x.tar.zst"),
    ] {
        assert!(adjust(namespace, source).is_err(), "{namespace} {source}");
    }
}

#[test]
fn the_shipped_configuration_file_parses_and_changes_nothing() {
    let shipped = include_str!("../../../../configs/nri/10-kybernate.conf");
    assert_eq!(policy().with_drop_in(shipped).unwrap(), policy());
}

#[test]
fn a_forged_marker_is_overwritten() {
    let forged = [(MANAGED, "99")];
    let adjustment = policy()
        .adjust(&pod("kybernate", &forged), &container("app", &forged))
        .unwrap();
    assert_eq!(
        adjustment.unwrap().annotations.get(MANAGED).unwrap(),
        VERSION
    );
}

#[test]
fn settings_that_open_too_much_are_refused() {
    let with = |handlers: &[&str], dirs: &[&str]| {
        Policy::new(&Settings {
            nri: NriSettings {
                handlers: handlers.iter().map(|name| (*name).into()).collect(),
                restore_dirs: dirs.iter().map(Into::into).collect(),
                ..Default::default()
            },
            ..Default::default()
        })
    };
    assert!(with(&["a", "b"], &["/a/b"]).is_ok());
    assert!(with(&["a"], &[]).is_ok());
    assert!(matches!(with(&[], &["/a"]), Err(PolicyError::NoHandler)));
    assert!(matches!(
        with(&["a", ""], &["/a"]),
        Err(PolicyError::EmptyHandler)
    ));
    assert!(matches!(with(&["a"], &["/"]), Err(PolicyError::Root)));
    for dir in ["a", "", "/a/../b", "/a/"] {
        assert!(
            matches!(with(&["a"], &[dir]), Err(PolicyError::Directory(_))),
            "{dir}"
        );
    }
}

#[test]
fn a_drop_in_replaces_what_it_names() {
    let changed = policy().with_drop_in("handlers = ['gpu']\n").unwrap();
    assert!(changed.is_class(&pod("gpu", &[])) && !changed.is_class(&pod("kybernate", &[])));
    assert_eq!(changed.restore_dirs, policy().restore_dirs);
    assert_eq!(policy().with_drop_in("").unwrap(), policy());
    let error = policy()
        .with_drop_in("handler = ['gpu']\n")
        .unwrap_err()
        .to_string();
    assert!(error.contains("handler"), "{error}");
    assert!(matches!(
        policy().with_drop_in("handlers = []"),
        Err(PolicyError::NoHandler)
    ));
}
