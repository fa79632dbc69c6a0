//! Changes to a TOML file as pieces of text: nothing else of the file moves.
//!
//! The file is parsed for places, and changed as text. Comments, order and formatting stay
//! because they are never written again:
//!
//! ```text
//! Replace  disable = true                       ─> disable = false
//! Append   …the end of the file                 ─> # >>> kybernate >>> … # <<< kybernate <<<
//! Inline   runtimes = { runc = { … } }          ─> runtimes = { runc = { … }, kybernate = { … } }
//! ```
//!
//! Every change can be undone in a file that others have changed meanwhile.

use serde::{Deserialize, Serialize};
use toml_edit::{Document, InlineTable, Item, Value};

/// First line of what is appended.
const OPEN: &str =
    "# >>> kybernate >>> written by `kybernate install`, taken out by `kybernate uninstall`";
/// Last line of what is appended.
const CLOSE: &str = "# <<< kybernate <<<";

/// One change that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Edit {
    /// Text that was put in; taking it out undoes it.
    Insert {
        /// The text.
        text: String,
    },
    /// A value that was replaced.
    Replace {
        /// Keys that lead to it.
        path: Vec<String>,
        /// What it was, as written.
        old: String,
        /// What it is.
        new: String,
    },
}

/// A table to be added: `key = value` lines, and tables in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTable {
    /// Keys that lead to it.
    pub path: Vec<String>,
    /// Its keys and values, as written.
    pub values: Vec<(String, String)>,
}

/// Why a file could not be changed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EditError {
    /// It is not TOML.
    #[error("it does not parse: {0}")]
    Parse(String),
    /// It is TOML of another shape.
    #[error("{path} is not a table in it")]
    Shape {
        /// Dotted keys.
        path: String,
    },
    /// The result would not be what was wanted.
    #[error("the change would not have the effect that it should: {0}")]
    Effect(String),
}

/// A file being changed.
#[derive(Debug, Clone)]
pub struct Text {
    text: String,
    edits: Vec<Edit>,
}

impl Text {
    /// Takes the text of a TOML file.
    pub fn parse(text: &str) -> Result<Self, EditError> {
        document(text)?;
        Ok(Self {
            text: text.to_owned(),
            edits: Vec::new(),
        })
    }

    /// The text with all changes, and the changes.
    pub fn into_parts(self) -> (String, Vec<Edit>) {
        (self.text, self.edits)
    }

    /// Sets a value that is there; false where it is not.
    pub fn replace(&mut self, path: &[&str], new: &str) -> Result<bool, EditError> {
        let parsed = document(&self.text)?;
        let Some(item) = find(parsed.as_item(), path) else {
            return Ok(false);
        };
        let Some(span) = item.as_value().and_then(Value::span) else {
            return Err(EditError::Shape {
                path: path.join("."),
            });
        };
        let old = self.text[span.clone()].to_owned();
        if old != new {
            self.text.replace_range(span, new);
            self.edits.push(Edit::Replace {
                path: path.iter().map(|key| (*key).to_owned()).collect(),
                old,
                new: new.to_owned(),
            });
        }
        Ok(true)
    }

    /// Whether a table is there, be it only because of a table in it.
    pub fn has(&self, path: &[&str]) -> Result<bool, EditError> {
        Ok(find(document(&self.text)?.as_item(), path).is_some())
    }

    /// Sets a key of a table, whether table and key are there or not.
    pub fn set(&mut self, table: &[&str], name: &str, value: &str) -> Result<(), EditError> {
        let path: Vec<&str> = table.iter().copied().chain([name]).collect();
        if self.replace(&path, value)? {
            return Ok(());
        }
        let parsed = document(&self.text)?;
        let item = find(parsed.as_item(), table);
        let inline = item.and_then(Item::as_inline_table);
        if let Some(inline) = inline.filter(|inline| !inline.is_dotted())
            && let Some(span) = inline.span()
        {
            let (at, lead) = match last_end(inline) {
                Some(end) => (end, ", "),
                None => (span.start + 1, " "),
            };
            let text = format!("{lead}{name} = {value}");
            self.text.insert_str(at, &text);
            self.edits.push(Edit::Insert { text });
            return Ok(());
        }
        let found = item.and_then(Item::as_table);
        let header = found.filter(|table| !table.is_implicit() && !table.is_dotted());
        let Some(header) = header else {
            return self.add(&[NewTable {
                path: table.iter().map(|key| (*key).to_owned()).collect(),
                values: vec![(name.into(), value.into())],
            }]);
        };
        let first = header
            .iter()
            .filter(|(_, item)| item.is_value())
            .filter_map(|(name, _)| header.key(name)?.span())
            .map(|span| span.start)
            .min();
        let (at, text) = match (first, header.span()) {
            (Some(at), _) => (at, format!("{name} = {value} # kybernate\n")),
            (None, Some(span)) => {
                let line = self.text[span.end..].find('\n');
                let at = line.map_or(self.text.len(), |offset| span.end + offset);
                (at, format!("\n{name} = {value} # kybernate"))
            }
            (None, None) => {
                return Err(EditError::Shape {
                    path: table.join("."),
                });
            }
        };
        self.text.insert_str(at, &text);
        self.edits.push(Edit::Insert { text });
        let parsed = document(&self.text).map_err(|e| EditError::Effect(e.to_string()))?;
        match find(parsed.as_item(), &path) {
            Some(_) => Ok(()),
            None => Err(EditError::Effect(format!("{} is not set", path.join(".")))),
        }
    }

    /// Adds tables that are not there yet.
    pub fn add(&mut self, tables: &[NewTable]) -> Result<(), EditError> {
        let mut block = Vec::new();
        for table in tables {
            let parsed = document(&self.text)?;
            match inline_parent(parsed.as_item(), &table.path)? {
                None => block.push(table),
                Some((depth, at, first)) => {
                    let keys: Vec<String> = table.path[depth..].iter().map(|k| key(k)).collect();
                    let values: Vec<String> = table
                        .values
                        .iter()
                        .map(|(key, value)| format!("{key} = {value}"))
                        .collect();
                    let text = format!(
                        "{}{} = {{ {} }}",
                        if first { " " } else { ", " },
                        keys.join("."),
                        values.join(", ")
                    );
                    self.text.insert_str(at, &text);
                    self.edits.push(Edit::Insert { text });
                }
            }
        }
        if !block.is_empty() {
            let text = appended(&self.text, &block);
            self.text.push_str(&text);
            self.edits.push(Edit::Insert { text });
        }
        document(&self.text)
            .map(drop)
            .map_err(|e| EditError::Effect(e.to_string()))
    }
}

/// The block that `tables` become at the end of `text`.
pub fn appended(text: &str, tables: &[impl std::borrow::Borrow<NewTable>]) -> String {
    let newline = if text.contains("\r\n") { "\r\n" } else { "\n" };
    let mut lines = Vec::new();
    if !text.is_empty() && !text.ends_with('\n') {
        lines.push(String::new());
    }
    if !text.is_empty() {
        lines.push(String::new());
    }
    lines.push(OPEN.to_owned());
    for table in tables {
        let table = table.borrow();
        let path: Vec<String> = table.path.iter().map(|k| key(k)).collect();
        lines.push(format!("[{}]", path.join(".")));
        for (name, value) in &table.values {
            lines.push(format!("  {name} = {value}"));
        }
    }
    lines.push(CLOSE.to_owned());
    lines.push(String::new());
    lines.join(newline)
}

/// Undoes `edits` in a text that may have been changed since. The error says what is left.
pub fn undo(text: &str, edits: &[Edit]) -> Result<String, String> {
    let mut text = text.to_owned();
    for edit in edits.iter().rev() {
        match edit {
            Edit::Insert { text: inserted } => {
                // The line breaks before a block may have been changed; the block may not.
                let found = text
                    .find(inserted.as_str())
                    .map(|at| (at, inserted.as_str()));
                let trimmed = inserted.trim_start_matches(['\r', '\n']);
                let found = found.or_else(|| text.find(trimmed).map(|at| (at, trimmed)));
                match found {
                    Some((at, what)) => text.replace_range(at..at + what.len(), ""),
                    None if text.contains(OPEN) => {
                        return Err(format!("the lines from {OPEN:?} on were changed by hand"));
                    }
                    // Somebody has written the file anew, without us.
                    None => {}
                }
            }
            Edit::Replace { path, old, new } => {
                let span = document(&text).ok().and_then(|parsed| {
                    let path: Vec<&str> = path.iter().map(String::as_str).collect();
                    find(parsed.as_item(), &path)?.as_value()?.span()
                });
                if let Some(span) = span.filter(|span| text[span.clone()] == *new) {
                    text.replace_range(span, old);
                }
            }
        }
    }
    Ok(text)
}

fn document(text: &str) -> Result<Document<&str>, EditError> {
    Document::parse(text).map_err(|e| EditError::Parse(e.to_string()))
}

fn find<'a>(item: &'a Item, path: &[&str]) -> Option<&'a Item> {
    path.iter().try_fold(item, |item, key| item.get(key))
}

/// Where the innermost existing table on the way to `path` is an inline one: how many keys lead
/// to it, where a pair can be inserted, and whether it would be the first.
fn inline_parent(root: &Item, path: &[String]) -> Result<Option<(usize, usize, bool)>, EditError> {
    let mut item = root;
    let mut found = None;
    for (depth, name) in path.iter().enumerate() {
        if let Some(table) = item.as_inline_table() {
            // One that dotted keys make has no braces of its own.
            if !table.is_dotted() {
                let span = table.span().ok_or_else(|| shape(&path[..depth]))?;
                found = Some(match last_end(table) {
                    Some(end) => (depth, end, false),
                    None => (depth, span.start + 1, true),
                });
            }
        } else if !item.is_table() {
            return Err(shape(&path[..depth]));
        }
        match item.get(name) {
            Some(next) => item = next,
            None => break,
        }
    }
    Ok(found)
}

/// Where the last value in an inline table ends.
fn last_end(table: &InlineTable) -> Option<usize> {
    let ends = table.iter().filter_map(|(_, value)| match value {
        Value::InlineTable(inner) if inner.is_dotted() => last_end(inner),
        value => Some(value.span()?.end),
    });
    ends.max()
}

fn shape(path: &[String]) -> EditError {
    EditError::Shape {
        path: path.join("."),
    }
}

/// A key as it has to be written.
pub fn key(name: &str) -> String {
    let bare = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if !name.is_empty() && name.bytes().all(bare) {
        name.to_owned()
    } else {
        format!("'{name}'")
    }
}

/// A string as it has to be written.
pub fn string(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// An appended block without the lines that mark it.
pub fn unmarked(block: &str) -> String {
    let lines = block.lines().filter(|line| *line != OPEN && *line != CLOSE);
    lines.map(|line| format!("{line}\n")).collect()
}

/// `text` without what was appended to it, if anything was.
pub fn without_block(text: &str) -> String {
    let mut text = text.to_owned();
    while let Some(start) = text.find(OPEN) {
        let Some(length) = text[start..].find(CLOSE) else {
            break;
        };
        text.replace_range(start..start + length + CLOSE.len(), "");
    }
    text
}

#[cfg(test)]
mod tests;
