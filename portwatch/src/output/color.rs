//! When text is coloured.
#![forbid(unsafe_code)]

use clap::ValueEnum;

/// What `--color` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    /// At a terminal that shows colours, unless the environment says otherwise
    #[default]
    Auto,
    /// Everywhere
    Always,
    /// Nowhere
    Never,
}

impl ColorChoice {
    /// Whether text is coloured, by the environment's conventions (no-color.org, bixense.com/clicolors).
    #[must_use]
    pub fn applies(self, is_terminal: bool, variable: impl Fn(&str) -> Option<String>) -> bool {
        let is_set = |name| variable(name).is_some_and(|value| !value.is_empty());
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto if is_set("NO_COLOR") => false,
            Self::Auto => {
                let is_forced = variable("CLICOLOR_FORCE")
                    .is_some_and(|value| !value.is_empty() && value != "0");
                let is_dumb = variable("TERM").is_some_and(|value| value == "dumb");
                is_forced || is_terminal && !is_dumb
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_argument_decides_before_the_environment_and_the_terminal() {
        use ColorChoice::{Always, Auto, Never};
        type Environment = &'static [(&'static str, &'static str)];
        let cases: [(ColorChoice, bool, Environment, bool); 11] = [
            (Auto, true, &[], true),
            (Auto, false, &[], false),
            (Auto, true, &[("NO_COLOR", "1")], false),
            (Auto, true, &[("NO_COLOR", "")], true),
            (Auto, true, &[("TERM", "dumb")], false),
            (Auto, false, &[("CLICOLOR_FORCE", "1")], true),
            (Auto, false, &[("CLICOLOR_FORCE", "0")], false),
            (
                Auto,
                true,
                &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")],
                false,
            ),
            (Always, false, &[("NO_COLOR", "1")], true),
            (Never, true, &[("CLICOLOR_FORCE", "1")], false),
            (Never, true, &[], false),
        ];
        for (choice, is_terminal, environment, expected) in cases {
            let variable = |name: &str| {
                let found = environment.iter().find(|(key, _)| *key == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            let applies = choice.applies(is_terminal, variable);
            assert_eq!(
                applies, expected,
                "{choice:?} {is_terminal} {environment:?}"
            );
        }
    }
}
