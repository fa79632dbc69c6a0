//! io_uring kept from a container. CRIU can't dump a process that has a ring, and programs that
//! find none do without.

use serde_json::{Value, json};

use super::capabilities::object;

const IO_URING: [&str; 3] = ["io_uring_enter", "io_uring_register", "io_uring_setup"];

/// What a kernel without io_uring says. Libraries that look for it expect this one.
const ENOSYS: i32 = 38;

/// Makes the calls fail. A spec without a filter gets one that lets everything else through; a
/// rule that one has for these calls is replaced.
pub fn block_io_uring(spec: &mut Value) {
    let linux = object(spec, "linux");
    if linux.get("seccomp").is_none_or(Value::is_null) {
        linux["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            // With the ones that an x86-64 kernel runs as well: a call of another is no reason
            // to kill its program.
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        });
    }
    let rules = object(linux, "seccomp")
        .as_object_mut()
        .expect("made an object")
        .entry("syscalls")
        .or_insert(Value::Null);
    if !rules.is_array() {
        *rules = Value::Array(Vec::new());
    }
    let rules = rules.as_array_mut().expect("made an array");
    for rule in rules.iter_mut() {
        if let Some(names) = rule.get_mut("names").and_then(Value::as_array_mut) {
            names.retain(|name| !name.as_str().is_some_and(|n| IO_URING.contains(&n)));
        }
    }
    // runc refuses a rule for nothing.
    rules.retain(|rule| rule.get("names") != Some(&json!([])));
    rules.push(json!({"names": IO_URING, "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS}));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_without_a_filter_keeps_every_other_call() {
        let mut spec = json!({"linux": {"seccomp": null}});
        block_io_uring(&mut spec);
        let seccomp = &spec["linux"]["seccomp"];
        assert_eq!(seccomp["defaultAction"], "SCMP_ACT_ALLOW");
        assert_eq!(
            seccomp["syscalls"],
            json!([{"names": IO_URING, "action": "SCMP_ACT_ERRNO", "errnoRet": 38}])
        );
    }

    #[test]
    fn rules_that_allow_the_calls_lose_them_and_nothing_else() {
        let mut spec = json!({"linux": {"seccomp": {
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [
                {"names": ["read", "io_uring_setup", "write"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["io_uring_enter"], "action": "SCMP_ACT_ALLOW"},
            ],
        }}});
        block_io_uring(&mut spec);
        let seccomp = &spec["linux"]["seccomp"];
        assert_eq!(seccomp["defaultAction"], "SCMP_ACT_ERRNO");
        assert_eq!(
            seccomp["syscalls"],
            json!([
                {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
                {"names": IO_URING, "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            ])
        );
    }
}
