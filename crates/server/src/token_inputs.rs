//! What token ids in place of text are.

use std::fmt;
use std::str::FromStr;

use tiktoken::CoreBpe;

/// What a client that sends another vocabulary's ids can do about it, and what the operator.
pub(crate) const ADVICE: &str = "if these are OpenAI's ids, as LangChain's OpenAIEmbeddings sends \
     them, set check_embedding_ctx_length=False there, which sends text, or start vecmill with \
     --token-inputs cl100k_base";

/// What the ids of a client that sends ids in place of text are.
///
/// ```
/// use vecmill_server::TokenInputs;
///
/// assert_eq!("cl100k_base".parse(), Ok(TokenInputs::Cl100kBase));
/// assert_eq!(TokenInputs::default().to_string(), "model");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TokenInputs {
    /// The model's own. A list that does not begin with the model's first special token is probably
    /// another vocabulary's: it is answered, with a warning.
    #[default]
    Model,
    /// Refused: clients must send text.
    Refuse,
    /// OpenAI's, of its vocabulary cl100k_base: the text that they stand for is embedded. On
    /// OpenAI's routes alone; those of TEI take the model's own.
    Cl100kBase,
}

/// A word that is not one of [`TokenInputs`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected model, refuse or cl100k_base")]
pub struct TokenInputsError;

impl FromStr for TokenInputs {
    type Err = TokenInputsError;

    fn from_str(text: &str) -> Result<Self, TokenInputsError> {
        let all = [Self::Model, Self::Refuse, Self::Cl100kBase];
        all.into_iter().find(|it| it.name() == text).ok_or(TokenInputsError)
    }
}

impl TokenInputs {
    fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Refuse => "refuse",
            Self::Cl100kBase => "cl100k_base",
        }
    }
}

impl fmt::Display for TokenInputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// OpenAI's vocabulary, if it can be read. That takes some milliseconds, the first time.
pub(crate) fn cl100k_base() -> Option<&'static CoreBpe> {
    tiktoken::get_encoding("cl100k_base")
}
