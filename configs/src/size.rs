//! Sizes as people write them: `262144`, `256KiB`, `256MiB`, `1GiB`.

/// Bytes per unit, binary units alone: nobody means 1000 when memory is the subject.
const UNITS: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// Text that is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no size; write a number of bytes or one with a unit, like 256MiB or 1GiB")]
pub struct SizeError(String);

/// Parses a size into bytes.
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let bad = || SizeError(text.to_owned());
    let trimmed = text.trim();
    let (number, unit) = UNITS
        .iter()
        .find_map(|(name, bytes)| Some((trimmed.strip_suffix(name)?, *bytes)))
        .unwrap_or((trimmed, 1));
    let number: u64 = number.trim_end().parse().map_err(|_| bad())?;
    number.checked_mul(unit).ok_or_else(bad)
}

/// Writes a size with three digits and the largest unit that leaves at least 1.
#[must_use]
pub fn display(bytes: u64) -> String {
    for (name, unit) in UNITS {
        if bytes >= unit && unit > 1 {
            let value = bytes as f64 / unit as f64;
            let digits = if value < 10.0 {
                2
            } else {
                usize::from(value < 100.0)
            };
            return format!("{value:.digits$} {name}");
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_with_and_without_units() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("17B", 17),
            ("256MiB", 256 << 20),
            (" 1 GiB ", 1 << 30),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "MiB", "-1", "1.5GiB", "256MB", "99999999999TiB"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_display_with_three_digits() {
        for (bytes, text) in [
            (17, "17 B"),
            (1536, "1.50 KiB"),
            (645 << 20, "645 MiB"),
            (12 << 30, "12.0 GiB"),
        ] {
            assert_eq!(display(bytes), text);
        }
    }
}
