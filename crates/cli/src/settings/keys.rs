//! The file of API keys: one on each line. Empty lines and those with `#` in front are skipped, and
//! so is the byte order mark that some editors put before everything.

use std::path::Path;

use vecmill_model::disk;
use vecmill_server::ApiKey;

use super::file::LIMIT;

/// The keys in the file at `path`, or all that is wrong with it.
pub(super) fn read(path: &Path) -> Result<Vec<ApiKey>, Vec<String>> {
    let file = path.display();
    let bytes = disk::read_regular(path, LIMIT)
        .map_err(|error| vec![format!("{file} can't be read: {error}")])?;
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        let what = match bytes.as_slice() {
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
                "begins with the byte order mark of UTF-16".to_owned()
            }
            _ => format!("is no UTF-8 at byte {}", error.valid_up_to()),
        };
        vec![format!("{file} {what}: save it as UTF-8")]
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = (1..).zip(text.lines().map(str::trim));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let (mut keys, mut problems) = (Vec::new(), Vec::new());
    for (number, line) in lines {
        match line.parse() {
            Ok(key) => keys.push(key),
            Err(error) => problems.push(format!("{file}:{number}: {error}")),
        }
    }
    if keys.is_empty() && problems.is_empty() {
        // An empty file must not open the server to everybody.
        problems.push(format!("{file} has no key in it"));
    }
    if problems.is_empty() { Ok(keys) } else { Err(problems) }
}
