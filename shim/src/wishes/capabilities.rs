//! Capabilities beyond those of the pod's security context.

use kybernate_config::wishes::Capabilities;
use serde_json::{Map, Value};

/// The sets that `securityContext.capabilities.add` reaches. A program that is not root's gets
/// them only if its file has them, as there.
const SETS: [&str; 3] = ["bounding", "effective", "permitted"];

/// Adds the capabilities to a spec. Returns whether it has changed.
pub fn add(spec: &mut Value, wish: &Capabilities) -> bool {
    if wish.names().next().is_none() {
        // Not even empty sets where there are none.
        return false;
    }
    let mut changed = false;
    let sets = object(object(spec, "process"), "capabilities");
    for set in SETS {
        let list = sets
            .as_object_mut()
            .expect("made an object")
            .entry(set)
            .or_insert(Value::Null);
        if !list.is_array() {
            *list = Value::Array(Vec::new());
        }
        let list = list.as_array_mut().expect("made an array");
        for name in wish.names() {
            if !list.iter().any(|has| has == name) {
                list.push(name.into());
                changed = true;
            }
        }
    }
    changed
}

/// The object in a field, made where there is none.
pub(super) fn object<'a>(parent: &'a mut Value, field: &str) -> &'a mut Value {
    if !parent.is_object() {
        *parent = Value::Object(Map::new());
    }
    let value = parent
        .as_object_mut()
        .expect("made an object")
        .entry(field)
        .or_insert(Value::Null);
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_three_sets_get_what_they_lack_and_keep_what_they_have() {
        let wish: Capabilities = "KILL,SYS_PTRACE".parse().unwrap();
        let mut spec = json!({"process": {"capabilities": {
            "bounding": ["CAP_KILL", "CAP_CHOWN"], "effective": null, "inheritable": ["CAP_CHOWN"]
        }}});
        assert!(add(&mut spec, &wish));
        let sets = &spec["process"]["capabilities"];
        assert_eq!(
            sets["bounding"],
            json!(["CAP_KILL", "CAP_CHOWN", "CAP_SYS_PTRACE"])
        );
        assert_eq!(sets["effective"], json!(["CAP_KILL", "CAP_SYS_PTRACE"]));
        assert_eq!(sets["permitted"], json!(["CAP_KILL", "CAP_SYS_PTRACE"]));
        assert_eq!(sets["inheritable"], json!(["CAP_CHOWN"]));
        assert!(!add(&mut spec, &wish));
    }

    #[test]
    fn an_empty_wish_changes_nothing() {
        for before in [json!({}), json!({"process": {"capabilities": null}})] {
            let mut spec = before.clone();
            assert!(!add(&mut spec, &Capabilities::default()));
            assert_eq!(spec, before);
        }
    }

    #[test]
    fn a_spec_without_capabilities_gets_the_sets() {
        let mut spec = json!({"process": {"capabilities": null}});
        assert!(add(&mut spec, &"KILL".parse().unwrap()));
        assert_eq!(
            spec["process"]["capabilities"]["bounding"],
            json!(["CAP_KILL"])
        );
    }
}
