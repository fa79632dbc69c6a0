//! Text for people: columns, numbers, and strings of unknown origin.

use std::fmt::Write;

/// A string that an archive or a daemon holds, without what a terminal would obey.
pub fn clean(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        // Marks that change the direction of the text can make one name look like another.
        let turns = matches!(c, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if c.is_control() || turns {
            clean.extend(c.escape_default());
        } else {
            clean.push(c);
        }
    }
    clean
}

/// Lays out rows in columns, two spaces apart, without trailing ones.
pub fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Milliseconds as people say them.
pub fn millis(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{:.2} s", ms as f64 / 1000.0),
        _ => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1000),
    }
}

/// A part of a whole with two digits; `-` of nothing.
pub fn ratio(part: u64, whole: u64) -> String {
    if whole == 0 {
        "-".into()
    } else {
        format!("{:.2}", part as f64 / whole as f64)
    }
}

/// An error and its causes in one line. Many errors quote their cause; it is said once.
pub fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
    }
    clean(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_the_terminal_that_it_would_obey() {
        assert_eq!(clean("web-0 ü"), "web-0 ü");
        assert_eq!(clean("\u{1b}[2Ja\nb\u{9b}"), "\\u{1b}[2Ja\\nb\\u{9b}");
        assert_eq!(clean("a\u{202e}b"), "a\\u{202e}b");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            ["a".into(), "ä1".into(), String::new()],
            ["bbb".into(), "c".into(), "d".into()],
        ];
        assert_eq!(columns(&rows), "a    ä1\nbbb  c   d\n");
    }

    #[test]
    fn times_and_ratios_are_short() {
        assert_eq!(millis(999), "999 ms");
        assert_eq!(millis(1500), "1.50 s");
        assert_eq!(millis(61_000), "1 min 1 s");
        assert_eq!(ratio(1, 3), "0.33");
        assert_eq!(ratio(1, 0), "-");
    }

    #[test]
    fn a_cause_is_said_once() {
        let io = std::io::Error::other("disk on fire");
        let quoting = anyhow::Error::new(io).context("cannot write: disk on fire");
        assert_eq!(chain(&quoting), "cannot write: disk on fire");
        let io = std::io::Error::other("disk on fire");
        assert_eq!(
            chain(&anyhow::Error::new(io).context("no")),
            "no: disk on fire"
        );
    }
}
