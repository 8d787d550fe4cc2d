use std::path::{Path, PathBuf};

use vecmill_server::TokenInputs;

use super::*;
use crate::settings::given::FlagTexts;
use crate::settings::kind::Secret;

/// Sources of settings, as a test has them.
#[derive(Default)]
struct Sources {
    flags: FlagTexts,
    environment: Environment,
    file: Option<tempfile::NamedTempFile>,
}

impl Sources {
    fn flag(mut self, field: &'static str, text: &str) -> Self {
        self.flags.entry(field).or_default().push(text.to_owned());
        self
    }

    fn variable(mut self, name: &str, text: &str) -> Self {
        self.environment.insert(name.to_owned(), text.into());
        self
    }

    fn file(mut self, text: &str) -> Self {
        let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
        std::fs::write(file.path(), text).unwrap();
        self.file = Some(file);
        self
    }

    fn path(&self) -> Option<PathBuf> {
        self.file.as_ref().map(|file| file.path().to_owned())
    }

    fn read<S: Settings>(&self) -> Result<S, Vec<String>> {
        let flags = Flags::new(self.flags.clone(), self.path());
        match read(flags, &self.environment) {
            Ok((settings, _)) => Ok(settings),
            Err(problems) => Err(problems.0.iter().map(ToString::to_string).collect()),
        }
    }

    fn serve(&self) -> ServeSettings {
        self.read().unwrap()
    }

    /// What is wrong, with the file's path left out.
    fn problems(&self) -> Vec<String> {
        let path = self.path().map(|path| path.display().to_string()).unwrap_or_default();
        let problems = self.read::<ServeSettings>().unwrap_err();
        let shorten = |problem: String| match path.is_empty() {
            true => problem,
            false => problem.replace(&path, "FILE"),
        };
        problems.into_iter().map(shorten).collect()
    }
}

fn none() -> Sources {
    Sources::default()
}

#[test]
fn defaults_are_accepted_and_those_of_the_server() {
    let settings = none().serve();
    assert_eq!(settings.address(), "127.0.0.1:3000");
    assert_eq!(settings.engine.model.model_id, ModelRef::default());
    let server = vecmill_server::Settings {
        max_request_memory: settings.server().max_request_memory, // the machine's matter
        ..vecmill_server::Settings::default()
    };
    assert!((1..=1 << 30).contains(&server.max_request_memory));
    assert_eq!(format!("{:?}", settings.server()), format!("{server:?}"));
}

#[test]
fn flags_count_before_variables_before_the_file_before_defaults() {
    let sources = none().file("port = 1");
    assert_eq!(sources.serve().server.port, 1);
    let sources = sources.variable("VECMILL_PORT", "2");
    assert_eq!(sources.serve().server.port, 2);
    let sources = sources.flag("port", "3");
    assert_eq!(sources.serve().server.port, 3);
}

#[test]
fn every_setting_has_its_own_names() {
    let mut names: Vec<String> = Vec::new();
    for setting in ServeSettings::groups().into_iter().flat_map(|(_, settings)| settings) {
        assert!(!setting.doc.is_empty(), "{}", setting.field);
        names.push(setting.key());
        names.extend(setting.alias.map(str::to_owned));
        names.extend(setting.variables());
    }
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count);
}

#[test]
fn all_problems_are_reported_each_with_its_place() {
    let sources = none()
        .flag("port", "70000")
        .flag("dtype", "int8")
        .variable("VECMILL_MAX_BATCH_TOKENS", "many")
        .file("# comment\nprot = 1\nauto-truncate = \"maybe\"\n\n[server]\nport = 1\n");
    assert_eq!(
        sources.problems(),
        [
            "FILE:2: prot: no such setting; did you mean 'port'?",
            "FILE:5: server: no such setting: 'vecmill serve --help' lists them all",
            "VECMILL_MAX_BATCH_TOKENS 'many': expected a whole number of at least 1, or auto",
            "--dtype 'int8': expected auto, float16, bfloat16, float32 or fp8",
            "--port '70000': expected a port from 0 to 65535",
            "FILE:3: auto-truncate 'maybe': expected true or false",
        ]
    );
}

#[test]
fn a_file_that_is_no_toml_says_where() {
    let problems = none().file("port = 1\nmodel-id = \n").problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].starts_with("FILE:2: not valid TOML: "), "{problems:?}");
}

#[test]
fn a_file_that_is_not_there_is_a_problem_among_others() {
    let flags = Flags::new(FlagTexts::from([("port", vec!["x".to_owned()])]), None);
    let environment = Environment::from([("VECMILL_CONFIG".to_owned(), "/no/file".into())]);
    let problems = read::<ServeSettings>(flags, &environment).unwrap_err().to_string();
    let expected = "2 settings can't be used:\n  VECMILL_CONFIG '/no/file': the settings file";
    assert!(problems.starts_with(expected), "{problems}");
}

#[test]
fn values_of_the_wrong_kind_in_a_file() {
    let problems = none().file("port = [1]\nhostname = 1979-05-27\n").problems();
    assert_eq!(
        problems[0],
        "FILE:2: hostname: expected text, a number or true/false, found datetime"
    );
    assert_eq!(problems[1], "FILE:1: port: expected text, a number or true/false, found array");
}

#[test]
fn an_alias_is_the_same_setting() {
    let folder = Some(Path::new("models"));
    let settings = none().file("huggingface-hub-cache = 'models'").serve();
    assert_eq!(settings.engine.model.cache_dir.as_deref(), folder);
    let twice = none().file("huggingface-hub-cache = 'a'\ncache-dir = 'b'").problems();
    assert!(twice[0].ends_with("keep one"), "{twice:?}");
}

#[test]
fn secrets_are_shown_nowhere() {
    let sources = none().variable("HF_TOKEN", "hf_secret").flag("api_key", "k3y");
    let settings = format!("{:?}", sources.serve());
    assert!(!settings.contains("hf_secret") && !settings.contains("k3y"), "{settings}");

    let sources = none().variable("HF_TOKEN", "hf secret").flag("api_key", "k 3y");
    let problems = sources.problems().join("\n");
    assert_eq!(problems.lines().count(), 2);
    assert!(!problems.contains("secret") && !problems.contains("3y"), "{problems}");
}

#[test]
fn the_token_has_two_variables_of_which_our_own_counts() {
    let token = |sources: Sources| sources.serve().engine.model.hf_token.map(Secret::reveal);
    let sources = none().variable("HF_TOKEN", "general");
    assert_eq!(token(sources).as_deref(), Some("general"));
    let sources = none().variable("HF_TOKEN", "general").variable("VECMILL_HF_TOKEN", "own");
    assert_eq!(token(sources).as_deref(), Some("own"));
}

#[test]
fn keys_come_repeated_separated_or_by_the_file() {
    let keys = |sources: Sources| sources.serve().server.api_key.len();
    assert_eq!(keys(none().flag("api_key", "a").flag("api_key", "b")), 2);
    assert_eq!(keys(none().variable("VECMILL_API_KEY", "a, b,c")), 3);
    assert_eq!(keys(none().file("api-key = ['a', 'b']")), 2);

    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    std::fs::write(path, "# keys\nfirst\n\n second \n").unwrap();
    assert_eq!(keys(none().flag("api_key_file", path).flag("api_key", "a")), 3);

    std::fs::write(path, "fine\ntwo words\n").unwrap();
    let problems = none().flag("api_key_file", path).problems();
    assert!(problems[0].contains(":2: expected visible ASCII"), "{problems:?}");

    std::fs::write(path, "# none\n").unwrap();
    let problems = none().flag("api_key_file", path).problems();
    assert!(problems[0].ends_with("has no key in it"), "{problems:?}");
    assert!(none().flag("api_key_file", "/no/file").problems()[0].contains("can't be read"));
}

#[test]
fn what_cannot_be_seen_in_a_key_is_skipped_or_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let given = || none().flag("api_key_file", path);
    std::fs::write(path, "\u{feff}first\r\n\r\n# more\r\nsecond\u{a0}\r\n").unwrap();
    assert_eq!(given().serve().server.api_key.len(), 2);

    for (text, line, name) in [
        ("\u{feff}\u{feff}k3y", 1, "U+FEFF (a byte order mark) at character 1"),
        ("fine\nk3\u{200b}y", 2, "U+200B (a zero-width space) at character 3"),
        ("k\u{a0}3y", 1, "U+00A0 (a no-break space) at character 2"),
    ] {
        std::fs::write(path, text).unwrap();
        let problem = given().problems().remove(0);
        assert!(problem.contains(&format!(":{line}: ")) && problem.ends_with(name), "{problem}");
        assert!(!problem.contains("3y"), "{problem}");
    }
    let utf16: Vec<u8> = "\u{feff}k3y".encode_utf16().flat_map(u16::to_le_bytes).collect();
    std::fs::write(path, utf16).unwrap();
    assert!(given().problems()[0].contains("mark of UTF-16: save it as UTF-8"));

    let variable = none().variable("VECMILL_API_KEY", "k3\u{2060}y").problems().remove(0);
    assert!(variable.ends_with("found U+2060 (a word joiner) at character 3"), "{variable}");
    let token = none().variable("HF_TOKEN", "hf_secret\n").problems().remove(0);
    assert!(token.ends_with("found U+000A (a line feed) at character 10"), "{token}");
}

#[test]
fn token_ids_are_the_model_s_unless_told() {
    let token_inputs = |sources: Sources| sources.serve().server().token_inputs;
    assert_eq!(token_inputs(none()), TokenInputs::Model);
    let openai = none().flag("token_inputs", "cl100k_base");
    assert_eq!(token_inputs(openai), TokenInputs::Cl100kBase);
    let wrong = none().variable("VECMILL_TOKEN_INPUTS", "cl100k").problems();
    assert!(wrong[0].ends_with("expected model, refuse or cl100k_base"), "{wrong:?}");
}

#[test]
fn of_two_default_prompts_the_stronger_source_counts() {
    let sources = none().flag("default_prompt", "query: ").file("default-prompt-name = 'passage'");
    let model = sources.serve().engine.usage;
    assert_eq!(model.default_prompt.as_deref(), Some("query: "));
    assert_eq!(model.default_prompt_name, None);
    let sources = none().flag("default_prompt", "a").flag("default_prompt_name", "b");
    assert!(sources.problems()[0].starts_with("--default-prompt-name: excludes"));
}

#[test]
fn a_revision_has_two_places_of_which_the_stronger_counts() {
    let revision = |sources: Sources| match sources.serve().engine.model.model_id {
        ModelRef::Hub { revision, .. } => revision,
        ModelRef::Folder(folder) => panic!("{}", folder.display()),
    };
    assert_eq!(revision(none().flag("revision", "v1")).as_deref(), Some("v1"));
    assert_eq!(revision(none().flag("model_id", "a/b@v2")).as_deref(), Some("v2"));
    let both = none().flag("model_id", "a/b@v2").variable("VECMILL_REVISION", "v1");
    assert_eq!(revision(both).as_deref(), Some("v2"));
    let both = none().flag("model_id", "a/b@v2").flag("revision", "v1");
    assert_eq!(both.problems(), ["--revision: excludes model-id: keep one of them"]);
}

#[test]
fn empty_variables_and_those_of_kubernetes_are_unset() {
    let sources = none().variable("VECMILL_PORT", "tcp://10.0.0.1:3000");
    assert_eq!(sources.variable("VECMILL_API_KEY", "").serve().server.port, 3000);
}

#[test]
fn a_slip_in_the_name_of_a_variable_is_a_warning() {
    let warnings = |name: &str| {
        let environment = Environment::from([(name.to_owned(), "1".into())]);
        read::<EmbedSettings>(Flags::new(FlagTexts::new(), None), &environment).unwrap().1
    };
    let expected = "the variable VECMILL_PROT is no setting; did you mean VECMILL_PORT?";
    assert_eq!(warnings("VECMILL_PROT"), [expected]);
    for fine in ["VECMILL_CPU_THREADS", "HF_TOKEN", "VECMILL_PORT_3000_TCP", "VECMILL_SERVICE_HOST"]
    {
        assert_eq!(warnings(fine), [""; 0], "{fine}");
    }
}

#[test]
fn other_commands_settings_are_known_but_not_looked_at() {
    let sources = none().file("port = 'nonsense'").variable("VECMILL_PAYLOAD_LIMIT", "x");
    assert!(sources.read::<EmbedSettings>().is_ok());
    assert_eq!(sources.problems().len(), 2);
}

#[test]
fn the_admin_addresses_need_a_key_where_others_can_reach_them() {
    let admin = |hostname| none().flag("admin", "true").flag("hostname", hostname);
    assert!(!none().serve().server().admin);
    for local in ["127.0.0.1", "127.1.2.3", "localhost", "::1"] {
        assert!(admin(local).serve().server().admin, "{local}");
    }
    for open in ["0.0.0.0", "::", "192.168.1.7", "example.org"] {
        let problems = admin(open).problems();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with("--admin: expected an --api-key"), "{problems:?}");
        assert!(admin(open).flag("api_key", "k3y").serve().server().admin, "{open}");
    }
}

#[test]
fn what_memory_settings_expect_is_said() {
    let sources = none()
        .flag("memory_budget", "8GB")
        .flag("memory_give_back", "1d")
        .variable("VECMILL_MEMORY_PREDICT", "maybe")
        .file("memory-recording-on-refusal = '/no/such'");
    assert_eq!(
        sources.problems(),
        [
            "--memory-budget '8GB': expected a size such as 8GiB or 512MiB, a number of bytes, or \
             a part from 1% to 100% of the device's memory",
            "--memory-give-back '1d': expected a time from 1s to 24h such as 60s or 5m, or never",
            "VECMILL_MEMORY_PREDICT 'maybe': expected true or false",
            "FILE:1: memory-recording-on-refusal '/no/such': expected a folder that exists",
        ]
    );
}

#[test]
fn ipv6_addresses_get_brackets() {
    let address = |hostname| none().flag("hostname", hostname).serve().address();
    assert_eq!(address("::"), "[::]:3000");
    assert_eq!(address("[::1]"), "[::1]:3000");
    assert_eq!(address("localhost"), "localhost:3000");
}
