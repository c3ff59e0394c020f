//! Settings: preset, then file, then `--set`, then flags; whatever is unknown is an error that suggests the nearest.

use crate::command::Arguments;
use serde::de::DeserializeOwned;
use std::path::PathBuf;
use thiserror::Error;
use toml::Table;

/// Settings that do not come to anything.
#[derive(Debug, Error)]
pub enum SettingsError {
    /// No such preset.
    #[error("unknown preset {name:?}{hint}; the presets are {known}")]
    Preset {
        /// As given.
        name: String,
        /// The nearest.
        hint: String,
        /// All of them.
        known: String,
    },
    /// A settings file that cannot be read.
    #[error("cannot read the settings file {}: {reason}", path.display())]
    File {
        /// Where.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
    /// `--set` without `=`.
    #[error("--set {0:?} is no KEY=VALUE, for instance --set epochs=5")]
    Assignment(String),
    /// Two flags for one thing.
    #[error("--{0} and --{1} cannot be given together")]
    Together(&'static str, &'static str),
    /// A key that no setting has.
    #[error("unknown setting {key:?} in {source_name}{hint}; known here: {known}")]
    Key {
        /// As given, with its table.
        key: String,
        /// The preset, file or flag.
        source_name: String,
        /// The nearest.
        hint: String,
        /// All of them.
        known: String,
    },
    /// A value of another type, or TOML that does not parse.
    #[error("{source_name}: {reason}")]
    Value {
        /// The preset, file or flag.
        source_name: String,
        /// What was expected and found.
        reason: String,
    },
}

/// Resolves an experiment's settings. `presets` is its TOML file: `[paper]` holds every key, other presets only what
/// differs from it.
///
/// # Errors
/// [`SettingsError`] for the first thing that does not fit.
pub fn resolve<S: DeserializeOwned>(presets: &str, arguments: &Arguments) -> Result<S, SettingsError> {
    let mut presets = parse(presets, "the built-in presets")?;
    let paper = table(presets.get("paper"));
    let mut settings = paper.clone();
    let name = &arguments.preset;
    let Some(preset) = presets.remove(name) else {
        let known: Vec<&str> = presets.keys().map(String::as_str).collect();
        return Err(SettingsError::Preset {
            hint: nearest(name, &known),
            known: known.join(", "),
            name: name.clone(),
        });
    };
    merge(&mut settings, table(Some(&preset)));

    for (layer, source_name) in layers(arguments)? {
        check_keys(&layer, &paper, &source_name, "")?;
        merge(&mut settings, layer);
        // Checked after each layer, so that the message names the one at fault.
        let resolved: Result<S, _> = toml::Value::Table(settings.clone()).try_into();
        resolved.map_err(|error| SettingsError::Value { source_name, reason: one_line(&error) })?;
    }
    toml::Value::Table(settings).try_into().map_err(|error| SettingsError::Value {
        source_name: format!("preset {name}"),
        reason: one_line(&error),
    })
}

/// What goes over the preset, with a name for messages: the file, each `--set`, each flag.
fn layers(arguments: &Arguments) -> Result<Vec<(Table, String)>, SettingsError> {
    let mut layers = Vec::new();
    if let Some(path) = &arguments.config {
        let text = std::fs::read_to_string(path)
            .map_err(|error| SettingsError::File { path: path.clone(), reason: error.to_string() })?;
        let source_name = path.display().to_string();
        layers.push((parse(&text, &source_name)?, source_name));
    }
    for assignment in &arguments.set {
        let Some((key, value)) = assignment.split_once('=') else {
            return Err(SettingsError::Assignment(assignment.clone()));
        };
        let source_name = format!("--set {assignment}");
        // A word without quotes is a string, as in --set dataset=digits.
        let layer = parse(&format!("{key} = {value}"), &source_name)
            .or_else(|_| parse(&format!("{key} = {}", toml::Value::from(value.trim())), &source_name))?;
        layers.push((layer, source_name));
    }
    for (own, values) in &arguments.own {
        let given = |name: &&&str| {
            arguments.own.iter().any(|(other, _)| other.name == **name)
                || **name == "dataset" && arguments.dataset.is_some()
        };
        if let Some(other) = own.excludes.iter().find(given) {
            return Err(SettingsError::Together(own.name, other));
        }
        let value = |given: &String| {
            let path = own.file.then(|| std::fs::canonicalize(given).ok()).flatten();
            path.map_or_else(|| given.clone(), |path| path.display().to_string())
        };
        let mut given: Vec<String> = values.iter().map(value).collect();
        let value = match given.as_slice() {
            [_] if !own.many => toml::Value::from(given.remove(0)),
            _ => given.into(),
        };
        layers.push((Table::from_iter([(own.key.to_owned(), value)]), format!("--{}", own.name)));
    }
    let mut flag = |key: &str, value: Option<toml::Value>| {
        if let Some(value) = value {
            layers.push((Table::from_iter([(key.to_owned(), value)]), format!("--{key}")));
        }
    };
    flag("dataset", arguments.dataset.clone().map(Into::into));
    for (key, number) in [("seeds", arguments.seeds), ("seed", arguments.seed)] {
        // TOML's numbers end at i64; another number than the user's own would be a silent change.
        let value = number.map(i64::try_from).transpose().map_err(|_| SettingsError::Value {
            source_name: format!("--{key}"),
            reason: format!("must lie between 0 and {}, found {}", i64::MAX, number.unwrap_or_default()),
        })?;
        flag(key, value.map(Into::into));
    }
    Ok(layers)
}

fn parse(text: &str, source_name: &str) -> Result<Table, SettingsError> {
    text.parse().map_err(|error| SettingsError::Value {
        source_name: source_name.to_owned(),
        reason: one_line(&error),
    })
}

fn table(value: Option<&toml::Value>) -> Table {
    value.and_then(toml::Value::as_table).cloned().unwrap_or_default()
}

fn merge(under: &mut Table, over: Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(toml::Value::Table(under)), toml::Value::Table(over)) => merge(under, over),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}

fn check_keys(layer: &Table, known: &Table, source_name: &str, path: &str) -> Result<(), SettingsError> {
    for (key, value) in layer {
        let full = format!("{path}{key}");
        match (known.get(key), value) {
            (Some(toml::Value::Table(known)), toml::Value::Table(layer)) => {
                check_keys(layer, known, source_name, &format!("{full}."))?;
            }
            (Some(_), _) => {}
            (None, _) => {
                let keys: Vec<&str> = known.keys().map(String::as_str).collect();
                return Err(SettingsError::Key {
                    hint: nearest(key, &keys),
                    known: keys.join(", "),
                    key: full,
                    source_name: source_name.to_owned(),
                });
            }
        }
    }
    Ok(())
}

/// `; did you mean "epochs"?` where a known word is near.
pub(crate) fn nearest(word: &str, known: &[&str]) -> String {
    known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().max(word.len()).div_ceil(3))
        .min()
        .map(|(_, candidate)| format!(", did you mean {candidate:?}?"))
        .unwrap_or_default()
}

/// TOML's messages span several lines with the text quoted; the last ones say what is wrong.
fn one_line(error: &dyn std::fmt::Display) -> String {
    let message = error.to_string();
    let lines = message.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.filter(|line| !line.contains('|')).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use serde::Deserialize;

    const PRESETS: &str = "
        [paper]
        dataset = 'mnist'
        seeds = 1
        epochs = 30
        alpha = { from = -2.0, points = 50 }
        [quick]
        epochs = 3
    ";

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Settings {
        dataset: String,
        seeds: u32,
        epochs: u32,
        alpha: Alpha,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Alpha {
        from: f64,
        points: usize,
    }

    fn resolved(arguments: &[&str]) -> Result<Settings, SettingsError> {
        resolve(PRESETS, &Arguments::parse_from([&["x"], arguments].concat()))
    }

    #[test]
    fn flags_go_over_set_over_file_over_preset() {
        let file = std::env::temp_dir().join(format!("flatland-settings-{}.toml", std::process::id()));
        std::fs::write(&file, "epochs = 7\nseeds = 2\n[alpha]\npoints = 9\n").unwrap();
        let path = file.to_str().unwrap();
        let settings = resolved(&["--preset", "quick"]).unwrap();
        assert_eq!((settings.epochs, settings.alpha.points), (3, 50));
        let settings = resolved(&["--preset", "quick", "--config", path]).unwrap();
        assert_eq!((settings.epochs, settings.seeds, settings.alpha), (7, 2, Alpha { from: -2., points: 9 }));
        let settings =
            resolved(&["--config", path, "--set", "epochs=8", "--set", "alpha.from=-1.5"]).unwrap();
        assert_eq!((settings.epochs, settings.alpha), (8, Alpha { from: -1.5, points: 9 }));
        let settings = resolved(&["--config", path, "--set", "seeds=4", "--seeds", "5"]).unwrap();
        assert_eq!(settings.seeds, 5);
        let settings = resolved(&["--set", "dataset=digits"]).unwrap();
        assert_eq!(settings.dataset, "digits");
        std::fs::remove_file(file).unwrap();
    }

    #[test]
    fn messages_name_the_place_and_the_nearest() {
        for (arguments, expected) in [
            (vec!["--set", "epoch=3"], r#"unknown setting "epoch" in --set epoch=3, did you mean "epochs"?"#),
            (
                vec!["--set", "alpha.point=3"],
                r#"unknown setting "alpha.point" in --set alpha.point=3, did you mean "points"?"#,
            ),
            (vec!["--preset", "quik"], r#"unknown preset "quik", did you mean "quick"?"#),
            (vec!["--set", "epochs"], "is no KEY=VALUE"),
            (vec!["--set", "epochs=many"], "--set epochs=many: invalid type: string \"many\", expected u32"),
            (vec!["--set", "epochs=-1"], "--set epochs=-1: invalid value: integer `-1`, expected u32"),
            (vec!["--config", "/nowhere.toml"], "cannot read the settings file /nowhere.toml"),
            (vec!["--seeds", "99999999999"], "--seeds: invalid value"),
        ] {
            let message = resolved(&arguments).unwrap_err().to_string();
            assert!(message.contains(expected) && !message.contains('\n'), "{message}");
        }
    }
}
