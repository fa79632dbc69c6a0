//! Container logs in the CRI's format: `2026-01-02T03:04:05.000000006Z stdout F text`.

use std::{fs, path::Path};

use anyhow::{Context, Result};

/// One line of a log, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// When containerd read it, RFC 3339.
    pub time: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Whether the text goes on in the next line of the same stream.
    pub partial: bool,
    /// The text without the line feed.
    pub text: String,
}

/// Reads a log; a line that is being written right now is left out.
pub(super) fn read(path: &Path) -> Result<Vec<LogLine>> {
    let text = fs::read(path).with_context(|| format!("cannot read log {}", path.display()))?;
    let text = String::from_utf8_lossy(&text);
    text.split_inclusive('\n')
        .filter_map(|line| line.strip_suffix('\n'))
        .map(|line| parse(line).with_context(|| format!("not a log line: {line:?}")))
        .collect()
}

fn parse(line: &str) -> Option<LogLine> {
    let mut words = line.splitn(4, ' ');
    let (time, stream, tag) = (words.next()?, words.next()?, words.next()?);
    Some(LogLine {
        time: time.into(),
        stream: stream.into(),
        partial: tag.split(':').any(|tag| tag == "P"),
        text: words.next()?.into(),
    })
}

/// The text of one stream, lines and parts put together.
pub(super) fn text(lines: &[LogLine], stream: &str) -> String {
    let mut text = String::new();
    for line in lines.iter().filter(|line| line.stream == stream) {
        text.push_str(&line.text);
        if !line.partial {
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_join_and_streams_stay_apart() {
        let lines: Vec<_> = [
            "2026-01-02T03:04:05Z stdout P ab",
            "2026-01-02T03:04:05Z stderr F error here",
            "2026-01-02T03:04:05Z stdout F c d",
            "2026-01-02T03:04:05Z stdout F ",
        ]
        .iter()
        .map(|line| parse(line).unwrap())
        .collect();
        assert_eq!(text(&lines, "stdout"), "abc d\n\n");
        assert_eq!(text(&lines, "stderr"), "error here\n");
        assert_eq!(parse("no log"), None);
    }
}
