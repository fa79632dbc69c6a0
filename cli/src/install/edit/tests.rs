use super::*;

fn table(path: &[&str]) -> NewTable {
    NewTable {
        path: path.iter().map(|k| (*k).to_owned()).collect(),
        values: vec![("a".into(), "1".into())],
    }
}

fn add(text: &str, path: &[&str]) -> String {
    let mut edited = Text::parse(text).unwrap();
    edited.add(&[table(path)]).unwrap();
    let (new, edits) = edited.into_parts();
    assert_eq!(undo(&new, &edits).unwrap(), text);
    let value: toml::Table = new.parse().unwrap();
    let mut value = toml::Value::Table(value);
    for key in path {
        value = value.get(*key).unwrap_or_else(|| panic!("{new}")).clone();
    }
    assert_eq!(value.get("a").unwrap().as_integer(), Some(1));
    new
}

#[test]
fn tables_go_where_the_file_lets_them() {
    let path = ["plugins", "io.x.v1", "runtimes", "k"];
    let new = add("# c\nversion = 2 # d", &path);
    assert!(new.starts_with("# c\nversion = 2 # d\n\n# >>>"), "{new}");
    assert!(new.contains("[plugins.'io.x.v1'.runtimes.k]\n  a = 1\n"));
    assert!(add("version = 2\r\n", &path).ends_with("<<<\r\n"));
    add("", &path);
    add(
        "[plugins.\"io.x.v1\"]\nb = 2\n[plugins.\"io.x.v1\".runtimes.r]\n",
        &path,
    );
    add("[plugins]\n'io.x.v1'.runtimes.r.b = 2\n", &path);
    let new = add(
        "[plugins.'io.x.v1']\nruntimes = { r = { b = 2 } } # e\n",
        &path,
    );
    assert!(
        new.contains("{ r = { b = 2 }, k = { a = 1 } } # e"),
        "{new}"
    );
    let new = add("[plugins]\n'io.x.v1' = {}\n", &path);
    assert!(new.contains("{ runtimes.k = { a = 1 }}"), "{new}");
    add("plugins = { 'io.x.v1' = { b = 1, } }\n", &path);
    let err = Text::parse("plugins = 3\n").unwrap().add(&[table(&path)]);
    assert!(matches!(err, Err(EditError::Shape { .. })), "{err:?}");
}

#[test]
fn a_value_is_replaced_alone() {
    let text = "[a]\n  b = true # why\n  c = { d = [1, 2] }\n";
    let mut edited = Text::parse(text).unwrap();
    assert_eq!(edited.replace(&["a", "b"], "false"), Ok(true));
    assert_eq!(edited.replace(&["a", "c", "d"], "[]"), Ok(true));
    assert_eq!(edited.replace(&["a", "x"], "1"), Ok(false));
    let (new, edits) = edited.into_parts();
    assert_eq!(new, "[a]\n  b = false # why\n  c = { d = [] }\n");
    assert_eq!(undo(&new, &edits).unwrap(), text);
}

#[test]
fn a_key_is_set_wherever_its_table_is() {
    for text in [
        "",
        "[p.n]\n",
        "[p.n] # c",
        "[p.n]\n  other = 1\n[q]\n",
        "[p]\nn = { other = 1 }\n",
        "[p]\nn = {}\n",
        "[p.n]\ndisable = true\n",
        "[p.n.deeper]\nx = 1\n",
        "[p.n]\n[p.n.deeper]\nx = 1\n",
    ] {
        let mut edited = Text::parse(text).unwrap();
        edited.set(&["p", "n"], "disable", "false").unwrap();
        let (new, edits) = edited.into_parts();
        let value: toml::Table = new.parse().unwrap();
        assert_eq!(value["p"]["n"]["disable"].as_bool(), Some(false), "{new}");
        assert_eq!(undo(&new, &edits).unwrap(), text, "{new}");
    }
}

#[test]
fn others_may_change_the_file_meanwhile() {
    let mut edited = Text::parse("x = 1\n[n]\ndisable = true\n").unwrap();
    edited.replace(&["n", "disable"], "false").unwrap();
    edited.add(&[table(&["r", "k"])]).unwrap();
    let (new, edits) = edited.into_parts();
    let changed = format!("# theirs\n{new}[other]\ny = 2\n");
    assert_eq!(
        undo(&changed, &edits).unwrap(),
        "# theirs\nx = 1\n[n]\ndisable = true\n[other]\ny = 2\n"
    );
    // Written anew by somebody else: there is nothing to undo.
    assert_eq!(undo("x = 3\n", &edits).unwrap(), "x = 3\n");
    // What was set by us and changed by them stays theirs; a mangled block is told.
    let mangled = new.replace("  a = 1", "  a = 2");
    assert!(undo(&mangled, &edits).unwrap_err().contains("by hand"));
}
