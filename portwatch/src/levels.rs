//! The levels of the modules: each may use those below it and nothing else of this crate.

use std::{fs, path::Path};

/// Lowest first. Modules on one level do not know each other.
const LEVELS: [&[&str]; 17] = [
    &["util"],
    &["model"],
    &["linux"],
    &["registry"],
    &["policy", "process", "sandbox", "sensor"],
    &["inventory"],
    &["tracker"],
    &["decide"],
    &["aggregate"],
    &["alert"],
    &["config", "output"],
    &["pipeline"],
    &["monitor"],
    &["conformance"],
    &["commands"],
    &["exit", "testing"],
    &["cli"],
];

fn level(module: &str) -> Option<usize> {
    LEVELS.iter().position(|level| level.contains(&module))
}

/// The identifier at the start of `text`; empty where there is none.
fn identifier(text: &str) -> String {
    text.chars()
        .take_while(|one| one.is_alphanumeric() || *one == '_')
        .collect()
}

/// The file's name, its text, and the module at the top that it belongs to.
fn sources(directory: &Path, all: &mut Vec<(String, String, String)>) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
            let name = path
                .strip_prefix(root)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            let module = name.split(['/', '.']).next().unwrap().to_owned();
            all.push((name, fs::read_to_string(&path).unwrap(), module));
        }
    }
}

/// The modules that a line or a `use crate::{...}` block names, with the line's number.
fn used(text: &str) -> Vec<(usize, String)> {
    let mut used = Vec::new();
    // How deep the braces of a `use crate::{` are open.
    let mut depth = 0;
    for (number, line) in (1..).zip(text.lines()) {
        let code = line.split("//").next().unwrap_or_default();
        if depth == 1 {
            let name = identifier(code.trim_start().trim_start_matches("self::"));
            if !name.is_empty() {
                used.push((number, name));
            }
        }
        for part in code.split("crate::").skip(1).filter(|_| depth == 0) {
            let name = identifier(part);
            if !name.is_empty() {
                used.push((number, name));
            }
        }
        if depth > 0 || code.contains("use crate::{") {
            let block = if depth > 0 {
                code
            } else {
                code.split("use crate::").nth(1).unwrap_or_default()
            };
            depth += block.matches('{').count();
            depth -= block.matches('}').count();
            // A block on one line.
            if depth == 0 && code.contains("use crate::{") {
                let inner = block.trim_start_matches('{');
                for part in split_top(inner) {
                    used.push((number, part));
                }
            }
        }
    }
    used
}

/// The first segments of a comma-separated list, braces respected.
fn split_top(list: &str) -> Vec<String> {
    let mut depth = 0;
    let mut names = vec![String::new()];
    for one in list.chars() {
        match one {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => names.push(String::new()),
            _ if depth == 0 => {
                if let Some(name) = names.last_mut() {
                    name.push(one);
                }
            }
            _ => {}
        }
    }
    names
        .iter()
        .filter_map(|name| name.trim().split("::").next())
        .map(|name| name.trim_end_matches(';').to_owned())
        .filter(|name| !name.is_empty())
        .collect()
}

#[test]
fn no_module_looks_upwards() {
    let mut all = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut all);
    let mut wrong = Vec::new();
    for (file, text, module) in &all {
        if ["lib", "main", "levels"].contains(&module.as_str()) || file.contains("tests") {
            continue;
        }
        let Some(own) = level(module) else {
            wrong.push(format!("{file}: the module {module} has no level"));
            continue;
        };
        // Unit tests at a file's end may use what they like.
        let text = text
            .split("#[cfg(test)]\nmod tests {")
            .next()
            .unwrap_or_default();
        for (line, other) in used(text) {
            if other == *module || ["r#macro"].contains(&other.as_str()) {
                continue;
            }
            match level(&other) {
                Some(its) if its < own => {}
                Some(_) => wrong.push(format!(
                    "{file}:{line}: {module} uses {other}, which is not below it"
                )),
                None => wrong.push(format!("{file}:{line}: {other} has no level")),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_the_sensor_names_aya_and_only_the_registry_its_csv() {
    let mut all = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut all);
    for (file, text, module) in &all {
        for (number, line) in (1..).zip(text.lines()) {
            let code = line.split("//").next().unwrap_or_default();
            let owner = if code.contains("use aya") || code.contains("aya::") {
                "sensor"
            } else if code.contains("use csv") || code.contains("csv::Byte") {
                "registry"
            } else {
                continue;
            };
            assert!(
                *module == owner || module == "levels",
                "{file}:{number}: {line}"
            );
        }
    }
}

#[test]
fn uses_are_found_in_lines_and_blocks() {
    let text = "use crate::model::Event;\nuse crate::{\n    util::Bounded,\n    policy::{\n        Rule,\n    },\n};\n\
        fn f() { crate::alert::g(); } // crate::cli\nuse crate::{decide::{A, B}, tracker::C};\n";
    let found: Vec<_> = used(text)
        .into_iter()
        .map(|(line, name)| format!("{line} {name}"))
        .collect();
    assert_eq!(
        found,
        [
            "1 model",
            "3 util",
            "4 policy",
            "8 alert",
            "9 decide",
            "9 tracker"
        ]
    );
}
