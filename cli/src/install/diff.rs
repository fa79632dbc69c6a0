//! Unified diffs, as `diff -u` writes them.

use similar::TextDiff;

/// The difference between two contents of a file; an absent one is nothing.
pub fn unified(path: &str, before: Option<&[u8]>, after: Option<&[u8]>) -> String {
    if before == after {
        return String::new();
    }
    let text = |bytes: Option<&[u8]>| bytes.map_or(Some(String::new()), text_of);
    let (Some(old), Some(new)) = (text(before), text(after)) else {
        let what = match (before, after) {
            (None, _) => "is added",
            (_, None) => "is removed",
            _ => "is replaced",
        };
        let size = after.or(before).map_or(0, <[u8]>::len);
        return format!(
            "Binary file {path} {what} ({})\n",
            kybernate_config::size::display(size as u64)
        );
    };
    let name = |side: &str, there: bool| {
        if there {
            format!("{side}{path}")
        } else {
            "/dev/null".to_owned()
        }
    };
    TextDiff::from_lines(&old, &new)
        .unified_diff()
        .header(&name("a", before.is_some()), &name("b", after.is_some()))
        .to_string()
}

fn text_of(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    (!text.contains('\0')).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_shown_with_their_surroundings() {
        let diff = unified("/etc/x", Some(b"a\nb\nc\n"), Some(b"a\nB\nc\n"));
        assert_eq!(
            diff,
            "--- a/etc/x\n+++ b/etc/x\n@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n"
        );
        let diff = unified("/etc/x", None, Some(b"a\n"));
        assert_eq!(diff, "--- /dev/null\n+++ b/etc/x\n@@ -0,0 +1 @@\n+a\n");
        assert_eq!(unified("/x", Some(b"a"), Some(b"a")), "");
        let diff = unified("/bin/x", None, Some(b"\x7fELF\0"));
        assert_eq!(diff, "Binary file /bin/x is added (5 B)\n");
    }
}
