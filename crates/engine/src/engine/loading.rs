//! Models that come and go beside those that are there, whose batches go on meanwhile.

use std::sync::{Arc, mpsc};
use std::time::Instant;

use vecmill_encoder::{LoadError, PracticeBatches};
use vecmill_hub::ModelRef;
use vecmill_scheduler::{ClassId, Size, Speed};

use super::{Engine, Loader, Running};
use crate::answer::Answer;
use crate::ask::Ask;
use crate::error::{Fault, RequestError, StartError};
use crate::info::Info;
use crate::models::{ModelStatus, Open, Served};
use crate::practice;
use crate::request::Reply;
use crate::settings::Settings;
use crate::stage::Stage;
use crate::tokenize::Tokenizer;
use crate::worker::{Loading, Profile};

/// How often a batch of practice is timed, after the backend was tuned with it.
const REPEATS: usize = 2;

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
        let Some(Loader { settings, profiles, shares }) = &self.loader else {
            let reason = "this engine was made of devices that load no other".into();
            return Err(StartError::Setting { setting: "model", reason });
        };
        let _alone = self.changing.begin();
        let models = &self.core.models;
        let settings = settings.for_model(model);
        let (name, _) = settings.model_name();
        let class = models.begin(&name)?.unwrap_or_else(|| self.core.queue.add_class());
        self.core.queue.set_weight(class, shares.of(&name));
        let loaded = self.load_as(&settings, class, profiles);
        match &loaded {
            Ok(served) => models.finish(served),
            Err(_) => {
                self.leave_devices(class);
                models.remove(&name, class);
                self.core.queue.forget(&name);
            }
        }
        self.core.start_early(&name);
        loaded.map(|_| name)
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
        let most = self.devices.iter().map(|device| device.batch_tokens(class)).max();
        let info =
            Info::of(settings, &model, &tokenizer, most.unwrap_or_default(), self.info.clone());
        let how = (model.pipeline, settings.default_prompt.clone());
        let served = Arc::new(Served::new(class, tokenizer, how, limits, info)?);
        for (index, (profile, speed)) in profiles.iter().zip(&mut speeds).enumerate() {
            self.core.queue.serve(
                index,
                class,
                self.devices[index].batch_tokens(class),
                speed.clone(),
            );
            let ready = self.practise((index, profile), &served, &texts).and_then(|()| {
                let wanted = settings.warm_up || settings.batch_latency.is_some();
                if wanted {
                    self.warm_up((index, profile), &served, settings, speed)
                } else {
                    Ok(())
                }
            });
            self.core.queue.retire(index, class);
            ready?;
        }
        for (index, (device, speed)) in self.devices.iter().zip(speeds).enumerate() {
            self.core.queue.serve(index, class, device.batch_tokens(class), speed);
            let cache = profiles[index].speed_cache(settings);
            self.speeds().extend(cache.map(|cache| (class, index, cache)));
        }
        Ok(served)
    }

    /// Has a device embed practice texts with a model that is new on it, and that no other serves yet.
    fn practise(
        &self,
        (index, profile): (usize, &Profile),
        served: &Arc<Served>,
        texts: &[Vec<u32>],
    ) -> Result<(), StartError> {
        let embed = |ids: &Vec<u32>| match self.embed_with(served, vec![ids.clone()]) {
            Ok(reply) => Ok(reply.embeddings.into_iter().flat_map(|it| it.vector).collect()),
            Err(RequestError::NotFinite { .. }) => Ok(vec![f32::NAN]),
            Err(error) => Err(error.to_string()),
        };
        let device = self.devices[index].name();
        practice::practise(device, &profile.info.dtype, texts, |texts| {
            texts.iter().map(embed).collect()
        })
    }

    /// Has a device run the batches of practice of such a model, as one does with the first model before
    /// it is at work; says in `speed` what they show.
    fn warm_up(
        &self,
        (index, profile): (usize, &Profile),
        served: &Arc<Served>,
        settings: &Settings,
        speed: &mut Speed,
    ) -> Result<(), StartError> {
        let device = &self.devices[index];
        let PracticeBatches { timed, ways } = device.practice(served.class);
        let total = timed.len() + ways.len();
        let progress = |done| {
            let device = device.name().to_owned();
            (settings.progress)(Stage::WarmingUp { device, done, total });
        };
        let run = |lengths: &[usize]| {
            let inputs = lengths.iter().map(|&length| vec![0; length]).collect();
            match self.embed_with(served, inputs) {
                Ok(reply) => Ok(Some(reply.timings.inference)),
                // Nothing that practice is to find out: it has been practised, or there is no room.
                Err(RequestError::NotFinite { .. }) => Ok(None),
                Err(error) if error.fault() == Fault::Load => {
                    tracing::debug!(device = device.name(), %error, "a batch of practice is left out");
                    Ok(None)
                }
                Err(error) => Err(StartError::NoDevice {
                    device: device.name().to_owned(),
                    reason: format!("a batch of practice failed: {error}"),
                }),
            }
        };
        let begun = Instant::now();
        let in_time = |_: &(usize, &Vec<usize>)| begun.elapsed() < profile.warm_up;
        for (done, lengths) in timed.iter().enumerate().take_while(in_time) {
            progress(done);
            device.tune(true);
            let tuned = run(lengths);
            device.tune(false);
            tuned?;
            let mut best = None;
            for _ in 0..REPEATS {
                best = best.into_iter().chain(run(lengths)?).min();
            }
            if let Some(took) = best {
                let tokens: usize = lengths.iter().sum();
                let each = tokens / lengths.len().max(1);
                speed.observe(Size::equal(lengths.len(), each), took);
            }
        }
        let begun = Instant::now();
        let in_time = |_: &(usize, &Vec<usize>)| begun.elapsed() < profile.warm_up;
        for (done, lengths) in ways.iter().enumerate().take_while(in_time) {
            progress(timed.len() + done);
            run(lengths)?;
        }
        progress(total);
        let most = device.batch_tokens(served.class);
        device.set_batch_tokens(
            served.class,
            settings.batch_tokens(speed, served.limits.max_tokens, most),
        );
        Ok(())
    }

    /// The vectors of ids by a model that is not ready for others yet. They go through the queue, as bulk
    /// work: the device's own thread is the one that computes, and may be the only one that can, and
    /// nobody else's batches wait for longer than one of these takes.
    fn embed_with(
        &self,
        served: &Arc<Served>,
        inputs: Vec<Vec<u32>>,
    ) -> Result<Reply, RequestError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let deliver = Box::new(move |result, _: Option<_>| {
            let _ = sender.send(result);
        });
        let ask = Ask::practice(served, inputs);
        self.core.start(Open::of(served), ask, Answer::new(&self.core.queue, deliver));
        receiver.recv().unwrap_or(Err(RequestError::Lost))
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
        served.wait_until_left();
        self.keep_speeds(|class| class == served.class);
        self.speeds().retain(|(class, _, _)| *class != served.class);
        self.leave_devices(served.class);
        self.core.queue.forget(name);
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
