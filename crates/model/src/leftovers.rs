//! What lies in a model's folder and is not read, though it looks as if it should be.

use super::file::{has_file, names_in};
use super::files::{self, CONFIG_FILE, MODULES_FILE};
use super::modules::Modules;
use super::{ModelError, Warning};

/// Warns of files and folders that are passed over; of a model that embeds, `chosen` says that its user
/// has chosen a pooling.
pub(super) fn check(
    modules: &Modules,
    (embeds, chosen): (bool, bool),
    warnings: &mut Vec<Warning>,
) -> Result<(), ModelError> {
    let transformer = modules.transformer();
    let there = |name: &str| has_file(&transformer.join(name));
    for [file, index] in files::WEIGHTS_FILES {
        if there(file)? && there(index)? {
            let what = format!("not read, because {file} lies beside");
            warnings.push(Warning::new(&transformer.join(index), what));
        }
    }
    let mut folders = Vec::new();
    for name in names_in(&modules.folder) {
        let path = modules.folder.join(&name);
        if let Some(known) = in_other_case(&name) {
            if !has_file(&modules.folder.join(known))? {
                let what = format!("not read, because its name should be '{known}'");
                warnings.push(Warning::new(&path, what));
            }
        } else if is_module(&name) && !modules.folders().any(|folder| folder == path) {
            folders.push(name);
        }
    }
    folders.sort_unstable();
    if modules.listed {
        warnings.extend(folders.iter().map(|name| {
            Warning::new(&modules.folder.join(name), "not used: modules.json does not list it")
        }));
        return Ok(());
    }
    let mut beside = folders;
    for name in [files::PROMPTS].into_iter().chain(files::TRANSFORMER) {
        if has_file(&modules.folder.join(name))? {
            beside.push(name.to_owned());
        }
    }
    if embeds && (!chosen || !beside.is_empty()) {
        warnings.push(Warning::new(&modules.folder.join(MODULES_FILE), assumed(chosen, &beside)));
    }
    Ok(())
}

/// What is assumed without `modules.json`.
fn assumed(chosen: bool, beside: &[String]) -> String {
    let pooling = if chosen { "the chosen pooling" } else { "the mean of all tokens" };
    let mut text = format!("there is none, so embeddings are {pooling}, not normalised");
    if !beside.is_empty() {
        text += ", and what lies beside is not read: ";
        text += &beside.join(", ");
    }
    text
}

/// The file that would be read were `name` written in lower case.
fn in_other_case(name: &str) -> Option<&'static str> {
    const OTHERS: [&str; 5] = [
        CONFIG_FILE,
        "tokenizer.json",
        files::TOKENIZER_CONFIG,
        files::SPECIAL_TOKENS,
        files::PROMPTS,
    ];
    let known = OTHERS.into_iter().chain(files::TRANSFORMER).chain([MODULES_FILE]);
    let known = known.chain(files::WEIGHTS_FILES.into_iter().flatten());
    known.into_iter().find(|known| *known != name && known.eq_ignore_ascii_case(name))
}

/// Whether a folder has a name that sentence-transformers gives to a module's: `2_Dense`.
fn is_module(name: &str) -> bool {
    name.split_once('_').is_some_and(|(number, class)| {
        !number.is_empty()
            && number.bytes().all(|digit| digit.is_ascii_digit())
            && class.starts_with(|first: char| first.is_ascii_uppercase())
    })
}
