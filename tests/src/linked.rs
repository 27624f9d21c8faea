//! Observers and bit policies that are linked in, under the SDK's conformance suites.

use serde_json::Value;
use taq_core::registry::Registry;
use taq_core::stats::{ChannelExtremes, LogHistogram};
use taq_core::{
    BitPolicy, LayerSpec, ObservationPoint, ObservedBatch, ObservedInput, Observer, PolicyPlan, PolicyRequest,
};
use taq_plugin::conformance::{Observes, Plans};
use taq_plugin::{Error, InputRange, Result};

use crate::planted::told;

/// A plugin by name, with settings.
pub struct Named {
    name: &'static str,
    settings: Value,
}

impl Named {
    /// The plugin of this name among those linked in.
    pub fn new(name: &'static str, settings: Value) -> Self {
        Self { name, settings }
    }

    /// Made by the registry from settings as text, or from its own.
    fn make<T>(
        &self,
        settings: Option<&str>,
        make: impl Fn(&Registry, &str, &Value) -> taq_core::Result<T>,
    ) -> Result<T> {
        let parsed = settings.map(serde_json::from_str).transpose();
        let settings = parsed.map_err(|e| Error::Invalid(e.to_string()))?.unwrap_or(self.settings.clone());
        let registry = Registry::linked().map_err(told)?;
        make(&registry, self.name, &settings).map_err(told)
    }

    fn observer(&self, settings: Option<&str>) -> Result<Box<dyn Observer>> {
        self.make(settings, Registry::observer)
    }

    fn policy(&self, settings: Option<&str>) -> Result<Box<dyn BitPolicy>> {
        self.make(settings, Registry::policy)
    }
}

impl Observes for Named {
    fn create(&self, settings: Option<&str>) -> Result<()> {
        self.observer(settings).map(drop)
    }

    fn range(&self, layer: &LayerSpec, batches: &[&[f32]]) -> Result<InputRange> {
        let mut observer = self.observer(None)?;
        let (channels, point) = (layer.in_features, ObservationPoint { layer, step: 3, sigma: 0.5 });
        let (mut all, mut distribution) = (ChannelExtremes::new(channels), LogHistogram::default());
        for values in batches {
            let extremes = ChannelExtremes::of(values, channels);
            let (min, max) = (&extremes.min, &extremes.max);
            observer.observe(&point, &ObservedBatch { values, channels, min, max }).map_err(told)?;
            distribution.add(values);
            all = all.merge(extremes);
        }
        let distribution = observer.wants_distribution().then_some(&distribution);
        observer.finish(&ObservedInput { extremes: &all, distribution }).map_err(told)
    }
}

impl Plans for Named {
    fn create(&self, settings: Option<&str>) -> Result<()> {
        self.policy(settings).map(drop)
    }

    fn plan(&self, request: &PolicyRequest) -> Result<PolicyPlan> {
        self.policy(None)?.assign(request).map_err(told)
    }
}
