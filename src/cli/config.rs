//! The configuration file: `config.yaml`, then `config.yaml.d/*.yaml` in order, turned
//! into flags that stand before the user's own.
//!
//! Flag beats environment beats file. An unknown key is an error that names the nearest.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use serde_json::{Map, Value};

use crate::args::Cli;

const DEFAULT: &str = "/etc/coracle/config.yaml";

/// `argv` with the file's settings worked in. A file that cannot be used ends the
/// process with a clear word, as a wrong flag would.
pub fn merged(argv: Vec<OsString>) -> Vec<OsString> {
    match try_merged(argv) {
        Ok(argv) => argv,
        Err(message) => {
            eprintln!("coracle: {message}");
            std::process::exit(1);
        }
    }
}

fn try_merged(argv: Vec<OsString>) -> Result<Vec<OsString>, String> {
    let Some(name) = argv.get(1).and_then(|word| word.to_str()) else { return Ok(argv) };
    let command = Cli::command();
    let Some(sub) = command.find_subcommand(name) else { return Ok(argv) };
    // Only commands that run something read the file; `images` and its like take the
    // flags they share with the server from it too.
    // (The scheduler's `--config` is another file, as upstream's.)
    let is_ours =
        |arg: &clap::Arg| arg.get_long() == Some("config") && arg.get_short() == Some('c');
    if !sub.get_arguments().any(is_ours) {
        return Ok(argv);
    }
    let settings = read(&config_path(&argv))?;
    let given: Vec<String> = argv
        .iter()
        .filter_map(|word| word.to_str())
        .filter_map(|word| word.strip_prefix("--"))
        .map(|word| word.split('=').next().unwrap_or(word).to_string())
        .collect();
    let server = command.find_subcommand("server").unwrap_or(sub);
    let mut flags: Vec<OsString> = Vec::new();
    for (key, value) in settings {
        let known = server.get_arguments().find(|arg| arg.get_long() == Some(key.as_str()));
        let Some(known) = known else { return Err(unknown(&key, server)) };
        let here = sub.get_arguments().any(|arg| arg.get_long() == Some(key.as_str()));
        let in_environment = known.get_env().is_some_and(|name| std::env::var_os(name).is_some());
        if !here || given.contains(&key) || in_environment {
            continue;
        }
        let takes_value = known.get_action().takes_values();
        for value in values(&key, &value)? {
            match (takes_value, value.as_str()) {
                (true, value) => flags.push(format!("--{key}={value}").into()),
                (false, "true") => flags.push(format!("--{key}").into()),
                (false, "false") => {}
                (false, other) => {
                    return Err(format!(
                        "{key} in the configuration file is {other:?}, not true or false"
                    ));
                }
            }
        }
    }
    let mut out = argv;
    out.splice(2..2, flags);
    Ok(out)
}

fn config_path(argv: &[OsString]) -> PathBuf {
    let mut words = argv.iter().skip(2);
    while let Some(word) = words.next() {
        let word = word.to_string_lossy();
        if let Some(path) = word.strip_prefix("--config=") {
            return path.into();
        }
        if (word == "--config" || word == "-c")
            && let Some(path) = words.next()
        {
            return path.into();
        }
    }
    std::env::var_os("CORACLE_CONFIG").map_or_else(|| DEFAULT.into(), PathBuf::from)
}

/// All files' settings; later files replace earlier ones, `key+` appends.
fn read(path: &Path) -> Result<Map<String, Value>, String> {
    let mut files = vec![path.to_path_buf()];
    let folder = PathBuf::from(format!("{}.d", path.display()));
    if let Ok(entries) = std::fs::read_dir(&folder) {
        let mut more: Vec<PathBuf> = entries
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| path.extension().is_some_and(|end| end == "yaml" || end == "yml"))
            .collect();
        more.sort();
        files.extend(more);
    }
    let mut out = Map::new();
    for file in files {
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => continue,
            Err(err) => return Err(format!("read {}: {err}", file.display())),
        };
        if text.trim().is_empty() {
            continue;
        }
        let parsed: Map<String, Value> = codec::yaml::read::typed(&text)
            .map_err(|err| format!("parse {}: {err}", file.display()))?;
        for (key, value) in parsed {
            match key.strip_suffix('+') {
                Some(base) => {
                    let mut list = list_of(out.get(base).unwrap_or(&Value::Null));
                    list.extend(list_of(&value));
                    out.insert(base.to_string(), list.into());
                }
                None => {
                    out.insert(key, value);
                }
            }
        }
    }
    Ok(out)
}

fn list_of(value: &Value) -> Vec<Value> {
    match value {
        Value::Null => Vec::new(),
        Value::Array(list) => list.clone(),
        one => vec![one.clone()],
    }
}

fn values(key: &str, value: &Value) -> Result<Vec<String>, String> {
    list_of(value)
        .into_iter()
        .map(|value| match value {
            Value::String(text) => Ok(text),
            Value::Number(number) => Ok(number.to_string()),
            Value::Bool(flag) => Ok(flag.to_string()),
            _ => Err(format!("{key} in the configuration file has a value that is no flag's")),
        })
        .collect()
}

fn unknown(key: &str, command: &clap::Command) -> String {
    let nearest = command
        .get_arguments()
        .filter_map(clap::Arg::get_long)
        .min_by_key(|name| distance(name, key));
    match nearest {
        Some(name) if distance(name, key) <= 3 => {
            format!("unknown key {key:?} in the configuration file; did you mean {name:?}?")
        }
        _ => format!("unknown key {key:?} in the configuration file"),
    }
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let cost = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(list: &[&str]) -> Vec<OsString> {
        list.iter().map(OsString::from).collect()
    }

    #[test]
    fn files_become_flags_and_flags_win() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        std::fs::write(
            &path,
            "node-name: a\ntls-san: [x]\ndisable-agent: true\nhttps-listen-port: 7000\n",
        )
        .unwrap();
        std::fs::create_dir(dir.path().join("config.yaml.d")).unwrap();
        std::fs::write(dir.path().join("config.yaml.d/1.yaml"), "tls-san+: other\n").unwrap();
        let config = format!("--config={}", path.display());
        let got = try_merged(words(&["coracle", "server", &config, "--node-name", "b"])).unwrap();
        let expected = [
            "coracle",
            "server",
            "--tls-san=x",
            "--tls-san=other",
            "--disable-agent",
            "--https-listen-port=7000",
            &config,
            "--node-name",
            "b",
        ];
        assert_eq!(got, words(&expected));
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        std::fs::write(&path, "node-nam: a\n").unwrap();
        let config = format!("--config={}", path.display());
        let err = try_merged(words(&["coracle", "server", &config])).unwrap_err();
        assert!(err.contains("did you mean \"node-name\""), "{err}");
    }
}
