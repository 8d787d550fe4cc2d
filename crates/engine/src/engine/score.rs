//! Scores of texts and of pairs of them.

use std::future::Future;
use std::sync::{Arc, mpsc};

use super::Engine;
use crate::answer::{Caller, GiveUpOnDrop};
use crate::error::RequestError;
use crate::info::Info;
use crate::score::{ScoreReply, ScoreRequest};

impl Engine {
    /// Scores the inputs of a request, by a model that classifies texts or ranks pairs of them. As with
    /// [`embed`](Self::embed), work starts at the call, and dropping the future gives up what has not
    /// reached a device.
    ///
    /// ```no_run
    /// use vecmill_engine::ScoreRequest;
    ///
    /// # async fn rank(engine: vecmill_engine::Engine) -> Result<(), vecmill_engine::RequestError> {
    /// let documents = ["Lagos", "Nairobi", "Kampala"];
    /// let reply = engine.score(ScoreRequest::rerank("capital of Kenya", documents)).await?;
    /// for (document, score) in documents.iter().zip(&reply.scores) {
    ///     println!("{document}: {:.3}", score.scores[0]);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`RequestError`]; its `fault` tells whose it is.
    pub fn score(
        &self,
        request: ScoreRequest,
    ) -> impl Future<Output = Result<ScoreReply, RequestError>> + Send + 'static {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let caller = self.submit_score(request, |result| {
            let _ = sender.send(result); // the caller may have gone away
        });
        let caller = GiveUpOnDrop(caller);
        async move {
            let _caller = caller;
            receiver.await.unwrap_or(Err(RequestError::Lost))
        }
    }

    /// As [`score`](Self::score), but blocks this thread: not for use inside an async runtime.
    ///
    /// # Errors
    /// [`RequestError`]; its `fault` tells whose it is.
    pub fn score_blocking(&self, request: ScoreRequest) -> Result<ScoreReply, RequestError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.submit_score(request, move |result| {
            let _ = sender.send(result);
        });
        receiver.recv().unwrap_or(Err(RequestError::Lost))
    }

    fn submit_score(
        &self,
        request: ScoreRequest,
        deliver: impl FnOnce(Result<ScoreReply, RequestError>) + Send + 'static,
    ) -> Caller {
        let deliver = Box::new(move |reply: Result<_, _>, info: Option<Arc<Info>>| {
            let labels = info.map_or_else(Arc::default, |info| info.task.labels());
            deliver(reply.map(|reply| ScoreReply::of(reply, labels)));
        });
        self.running.core.submit(request, deliver)
    }
}
