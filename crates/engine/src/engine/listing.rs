//! Shows how texts are tokenised, beside the way of requests.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tokio::sync::oneshot;

use super::{Core, Engine};
use crate::error::RequestError;
use crate::tokenize::{TOKENS_LIMIT, TokenizeRequest, Tokenized};

impl Engine {
    /// Shows how texts are tokenised, without embedding or cutting them. Work starts at the call;
    /// dropping the future ends it. As many requests as there are tokenising threads are worked on
    /// or have replies that are still held.
    ///
    /// # Errors
    /// When the prompt is unknown, the tokenizer refuses a text, there is too much of it, or too many
    /// ask.
    pub fn tokenize(
        &self,
        request: TokenizeRequest,
    ) -> impl Future<Output = Result<Tokenized, RequestError>> + Send + 'static {
        let (sender, receiver) = oneshot::channel();
        self.running.core.list(request, sender);
        async move { receiver.await.unwrap_or(Err(RequestError::Stopped)) }
    }

    /// As [`tokenize`](Self::tokenize), but blocks this thread: not for use inside an async runtime.
    ///
    /// # Errors
    /// As there.
    pub fn tokenize_blocking(&self, request: TokenizeRequest) -> Result<Tokenized, RequestError> {
        let (sender, receiver) = oneshot::channel();
        self.running.core.list(request, sender);
        receiver.blocking_recv().unwrap_or(Err(RequestError::Stopped))
    }
}

impl Core {
    /// Lists the tokens of texts on a tokenising thread. `answer` gets them or the error.
    fn list(
        &self,
        request: TokenizeRequest,
        answer: oneshot::Sender<Result<Tokenized, RequestError>>,
    ) {
        let started = self.models.open(request.model.as_deref()).and_then(|model| {
            let prompt = model.prompt(&request.prompt)?;
            let places = self.tokenizers.current_num_threads();
            let busy = |_| RequestError::TokenizersBusy { places };
            Ok((model, prompt, Arc::clone(&self.listings).try_acquire_owned().map_err(busy)?))
        });
        let (model, prompt, place) = match started {
            Ok(started) => started,
            Err(error) => {
                let _ = answer.send(Err(error)); // the caller may have gone away
                return;
            }
        };
        self.tokenizers.spawn(move || {
            let wanted = || !answer.is_closed();
            let tokenizer = &model.tokenizer;
            // A panic on a tokenising thread would end the process.
            let list = || tokenizer.list_while(request, &prompt, TOKENS_LIMIT, wanted);
            let listed = catch_unwind(AssertUnwindSafe(list)).unwrap_or(Err(RequestError::Lost));
            let _ = answer.send(listed.map(|listed| listed.holding(place)));
        });
    }
}
