//! Models that come and go beside those that are there, whose batches go on meanwhile.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use vecmill_encoder::LoadError;
use vecmill_hub::ModelRef;
use vecmill_scheduler::{ClassId, Speed};

use super::{Engine, Loader, Running};
use crate::ask::Ask;
use crate::error::{RequestError, StartError};
use crate::models::{ModelStatus, Open, Served};
use crate::practice;
use crate::settings::Settings;
use crate::tokenize::Tokenizer;
use crate::worker::{Loading, Profile};

/// How often it is looked whether a model's requests are answered.
const DRAINED: Duration = Duration::from_millis(1);

impl Engine {
    /// Loads another model beside those that are there, whose batches go on meanwhile, and returns the
    /// name that requests call it by. Where memory does not suffice, models that have no work and are not
    /// [pinned](Self::pin) make way, the least recently used first. Blocks until it is ready.
    ///
    /// # Errors
    /// [`StartError`] says what is wrong with it, or what memory is lacking; all is as before then, but
    /// for models that have made way.
    pub fn load(&self, model: ModelRef) -> Result<String, StartError> {
        self.running.load(model)
    }

    /// Takes a model off all devices, once the requests that it has are answered, and gives its memory
    /// back; `false` if none of that name is ready. Blocks until then.
    pub fn unload(&self, model: &str) -> bool {
        let _alone = self.running.changing.begin();
        self.running.unload(model)
    }

    /// Whether a model may make way for others (it may, unless it was pinned); `false` if there is none
    /// of that name.
    pub fn pin(&self, model: &str, pinned: bool) -> bool {
        self.running.core.models.pin(model, pinned)
    }

    /// The models, in the order in which they were loaded.
    pub fn models(&self) -> Vec<ModelStatus> {
        self.running.core.models.status()
    }
}

impl Running {
    fn load(&self, model: ModelRef) -> Result<String, StartError> {
        let Some(Loader { settings, profiles }) = &self.loader else {
            let reason = "this engine was made of devices that load no other".into();
            return Err(StartError::Setting { setting: "model", reason });
        };
        let _alone = self.changing.begin();
        let models = &self.core.models;
        let settings = settings.for_model(model);
        let (name, _) = settings.model_name();
        let class = models.begin(&name)?.unwrap_or_else(|| self.core.queue.add_class());
        match self.load_as(&settings, class, profiles) {
            Ok(served) => {
                models.finish(&served);
                Ok(name)
            }
            Err(error) => {
                self.leave_devices(class);
                models.remove(&name, class);
                Err(error)
            }
        }
    }

    fn load_as(
        &self,
        settings: &Settings,
        class: ClassId,
        profiles: &[Profile],
    ) -> Result<Arc<Served>, StartError> {
        let model = settings.open(&settings.fetch()?)?;
        let tokenizer = Tokenizer::open(&model.folder, &model.pipeline, model.max_input_tokens())?;
        let mut speeds = Vec::new();
        for (index, (device, profile)) in self.devices.iter().zip(profiles).enumerate() {
            let loading = Loading { settings, model: &model, profile };
            speeds.push(loop {
                match device.load((index, class), &self.core.queue, &loading) {
                    Ok(speed) => break speed,
                    Err(error) => self.make_way(error)?,
                }
            });
        }
        model.check_unchanged()?;
        let first = self.devices.first().and_then(|device| device.limits(class));
        let limits = first.ok_or_else(StartError::no_device)?;
        let texts = practice::texts(&tokenizer, limits.vocabulary)?;
        let named = (settings.model_name().0, class);
        let prompt = settings.default_prompt.clone();
        let served = Arc::new(Served::new(named, tokenizer, (model, prompt), limits)?);
        for (index, (profile, speed)) in profiles.iter().zip(&speeds).enumerate() {
            self.practise((index, profile), &served, speed, &texts)?;
        }
        for (index, (device, speed)) in self.devices.iter().zip(speeds).enumerate() {
            self.core.queue.serve(index, class, device.batch_tokens(class), speed);
            let cache = profiles[index].speed_cache(settings);
            self.speeds().extend(cache.map(|cache| (class, index, cache)));
        }
        Ok(served)
    }

    /// Has a device embed practice texts with a model that is new on it. They go through the queue: the
    /// device's own thread is the one that computes, and may be the only one that can.
    fn practise(
        &self,
        (index, profile): (usize, &Profile),
        served: &Arc<Served>,
        speed: &Speed,
        texts: &[Vec<u32>],
    ) -> Result<(), StartError> {
        let (queue, device) = (&self.core.queue, &self.devices[index]);
        let embed = |ids: &Vec<u32>| {
            let (sender, receiver) = mpsc::sync_channel(1);
            let deliver = Box::new(move |result| {
                let _ = sender.send(result);
            });
            let ask = Ask::practice(served, ids.clone());
            self.core.submit_to(Ok(Open::of(served)), ask, deliver);
            match receiver.recv().unwrap_or(Err(RequestError::Lost)) {
                Ok(reply) => Ok(reply.embeddings.into_iter().flat_map(|it| it.vector).collect()),
                Err(RequestError::NotFinite { .. }) => Ok(vec![f32::NAN]),
                Err(error) => Err(error.to_string()),
            }
        };
        queue.serve(index, served.class, device.batch_tokens(served.class), speed.clone());
        let practised = practice::practise(device.name(), &profile.info.dtype, texts, |texts| {
            texts.iter().map(embed).collect()
        });
        queue.retire(index, served.class);
        practised
    }

    /// Unloads a model if memory was lacking and one may go; else that remains the error.
    fn make_way(&self, error: StartError) -> Result<(), StartError> {
        let lacking = matches!(
            error,
            StartError::Budget(_) | StartError::Memory(_) | StartError::Load(LoadError::Memory(_))
        );
        match self.core.models.least_used().filter(|_| lacking) {
            Some(name) => {
                tracing::info!(model = name, "it makes way for another model");
                self.unload(&name);
                Ok(())
            }
            None => Err(error),
        }
    }

    fn unload(&self, name: &str) -> bool {
        let Some(served) = self.core.models.drain(name) else { return false };
        while served.has_work() {
            std::thread::park_timeout(DRAINED);
        }
        self.keep_speeds(|class| class == served.class);
        self.speeds().retain(|(class, _, _)| *class != served.class);
        self.leave_devices(served.class);
        self.core.models.remove(name, served.class);
        true
    }

    fn leave_devices(&self, class: ClassId) {
        for (index, device) in self.devices.iter().enumerate() {
            self.core.queue.retire(index, class);
            device.unload((index, class), &self.core.queue);
        }
    }
}
