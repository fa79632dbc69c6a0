//! Names that entries may have.

use super::error::NameFault;

/// Longest name in bytes: the name field of a tar header.
pub(super) const MAX: usize = 100;

/// Checks `name`; a directory's may end in one `/`.
pub(super) fn check(name: &str) -> Result<(), NameFault> {
    if name.is_empty() || name == "/" {
        return Err(NameFault::Empty);
    }
    if name.len() > MAX {
        return Err(NameFault::TooLong);
    }
    if name.starts_with('/') {
        return Err(NameFault::Absolute);
    }
    if !name.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        return Err(NameFault::Characters);
    }
    let path = name.strip_suffix('/').unwrap_or(name);
    if path
        .split('/')
        .any(|component| matches!(component, "" | "." | ".."))
    {
        return Err(NameFault::Component);
    }
    Ok(())
}

/// The directory entry that must come before `name`.
pub(super) fn parent(name: &str) -> Option<&str> {
    let path = name.strip_suffix('/').unwrap_or(name);
    path.rfind('/').map(|at| &path[..=at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_directory_are_refused() {
        for (name, fault) in [
            ("", NameFault::Empty),
            ("/", NameFault::Empty),
            ("/etc/passwd", NameFault::Absolute),
            ("..", NameFault::Component),
            ("../x", NameFault::Component),
            ("a/../b", NameFault::Component),
            ("a//b", NameFault::Component),
            ("a//", NameFault::Component),
            ("./a", NameFault::Component),
            ("a\0b", NameFault::Characters),
            ("a\nb", NameFault::Characters),
            ("é", NameFault::Characters),
        ] {
            assert_eq!(check(name), Err(fault), "{name:?}");
        }
        assert_eq!(check(&"x".repeat(101)), Err(NameFault::TooLong));
        for name in ["a", "a/", "a/b", "a/b/", "...", &"x".repeat(100)] {
            assert_eq!(check(name), Ok(()), "{name:?}");
        }
    }

    #[test]
    fn the_parent_is_the_directory_entry() {
        assert_eq!(parent("a"), None);
        assert_eq!(parent("a/"), None);
        assert_eq!(parent("a/b"), Some("a/"));
        assert_eq!(parent("a/b/"), Some("a/"));
        assert_eq!(parent("a/b/c"), Some("a/b/"));
    }
}
