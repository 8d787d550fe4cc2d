//! Settings as flags: the definitions turned into clap's, the texts given taken back out.

use std::marker::PhantomData;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::settings::Settings;
use crate::settings::given::FlagTexts;
use crate::settings::setting::Setting;

/// The flags of the settings `S`, as text: they are parsed together with the other sources'.
#[derive(Debug, Clone)]
pub(crate) struct Flags<S> {
    /// The texts given.
    pub(crate) texts: FlagTexts,
    /// The settings file named by a flag.
    pub(crate) config: Option<PathBuf>,
    settings: PhantomData<S>,
}

impl<S> Flags<S> {
    /// Flags that gave these texts.
    pub(crate) fn new(texts: FlagTexts, config: Option<PathBuf>) -> Self {
        Self { texts, config, settings: PhantomData }
    }
}

impl<S: Settings> clap::FromArgMatches for Flags<S> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |setting: &'static Setting| {
            let texts = matches.get_many::<String>(setting.field)?.cloned().collect();
            Some((setting.field, texts))
        };
        let settings = S::groups().into_iter().flat_map(|(_, settings)| settings);
        let texts = settings.filter_map(given).collect();
        Ok(Self::new(texts, matches.get_one::<PathBuf>("config").cloned()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl<S: Settings> clap::Args for Flags<S> {
    fn augment_args(command: Command) -> Command {
        let config = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .value_hint(clap::ValueHint::FilePath)
            .help("TOML file with settings, by the same names; none is read by itself")
            .long_help(
                "TOML file with settings, by the same names as the flags. None is read by itself, \
                 so what a server does never depends on the folder it was started in. Settings of \
                 other commands may be in it; unknown ones are errors.\n\n[env: VECMILL_CONFIG]",
            )
            .help_heading("Configuration");
        let mut command = command.arg(config);
        for (heading, settings) in S::groups() {
            let arguments = settings.iter().map(|setting| argument(setting).help_heading(heading));
            command = command.args(arguments);
        }
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

fn argument(setting: &'static Setting) -> Arg {
    let (summary, details) = help(setting);
    let mut argument = Arg::new(setting.field)
        .long(setting.key())
        .value_name(setting.placeholder)
        .action(if setting.many { ArgAction::Append } else { ArgAction::Set })
        .help(summary)
        .long_help(details);
    if let Some(alias) = setting.alias {
        argument = argument.visible_alias(alias);
    }
    if let Some(implied) = setting.implied {
        argument = argument.num_args(0..=1).default_missing_value(implied);
    }
    match setting.placeholder {
        "PATH" => argument.value_hint(clap::ValueHint::AnyPath),
        "ID|FOLDER" | "FOLDER" => argument.value_hint(clap::ValueHint::DirPath),
        _ => argument.value_hint(clap::ValueHint::Other),
    }
}

/// The short and the long help text.
fn help(setting: &Setting) -> (String, String) {
    let default = setting.default.map(|default| format!(" [default: {default}]"));
    let default = default.unwrap_or_default();
    let mut paragraphs = setting.doc.split(|line| line.is_empty()).map(|lines| {
        let words = lines.iter().flat_map(|line| line.split_whitespace());
        words.collect::<Vec<_>>().join(" ")
    });
    let summary = paragraphs.next().unwrap_or_default();
    let long = paragraphs.fold(summary.clone(), |long, next| format!("{long}\n\n{next}"));
    let variables = setting.variables().collect::<Vec<_>>().join(", ");
    (format!("{summary}{default}"), format!("{long}\n\n[env: {variables}]{default}"))
}
