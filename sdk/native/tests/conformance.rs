//! The smallest plugin of each kind under its suite, every call through the C ABI within one program: small enough for Miri.

use taq_plugin::conformance::{
    ObserverUnderTest, PolicyUnderTest, RounderUnderTest, assert_observer_conforms, assert_policy_conforms,
    assert_rounder_conforms,
};
use taq_plugin::{
    Batch, BitPolicy, BlockJob, BlockRounder, Context, Error, InputRange, LayerJob, LayerRounder,
    LayerValues, ObservationPoint, ObservedBatch, Observer, Plugin, PolicyPlan, PolicyRequest, Result,
    RoundedLayer,
};

#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct Settings {}

macro_rules! plugin {
    ($type:ident, $name:literal, $new:expr) => {
        impl Plugin for $type {
            type Settings = Settings;
            const NAME: &'static str = $name;
            const SUMMARY: &'static str = "Of a test.";
            fn new(_: Settings) -> Result<Self> {
                Ok($new)
            }
        }
    };
}

/// Rounds every layer to nearest.
struct Nearest;
plugin!(Nearest, "nearest", Self);

impl LayerRounder for Nearest {
    fn round(&self, job: &LayerJob<'_>, cx: &Context<'_>) -> Result<RoundedLayer> {
        cx.check()?;
        match job.inputs.iter().all(|x| x.is_finite()) {
            true => Ok(job.layer.nearest()),
            false => Err(Error::invalid("the inputs are not finite")),
        }
    }
}

/// Asks what the block makes of the weights as they are, then rounds to nearest.
struct Asking;
plugin!(Asking, "asking", Self);

impl BlockRounder for Asking {
    fn round(&self, job: &mut BlockJob<'_>, cx: &Context<'_>) -> Result<Vec<RoundedLayer>> {
        cx.check()?;
        if job.reconstruction.rows() == 0 {
            return Err(Error::invalid("there are no rows"));
        }
        let values = |weight| LayerValues { weight, input_scale: None };
        let weights: Vec<_> = job.layers.iter().map(|l| values(l.weight)).collect();
        let batch = Batch { rows: &[0], drop: None };
        let (loss, gradients) = job.reconstruction.loss_and_gradients(&weights, batch, false)?;
        let finite = gradients.iter().all(|g| g.weight.iter().all(|x| x.is_finite()));
        if !loss.is_finite() || !finite {
            return Err(Error::Failed(format!("the error of {} is {loss}", job.block)));
        }
        cx.progress(1, 1);
        Ok(job.layers.iter().map(|layer| layer.nearest()).collect())
    }
}

/// Extremes by channel.
#[derive(Default)]
struct Extremes(Option<(Vec<f32>, Vec<f32>)>);
plugin!(Extremes, "extremes", Self::default());

impl Observer for Extremes {
    fn observe(&mut self, _: &ObservationPoint<'_>, batch: &ObservedBatch<'_>) -> Result<()> {
        let (min, max) = self.0.get_or_insert_with(|| (batch.min.to_vec(), batch.max.to_vec()));
        min.iter_mut().zip(batch.min).for_each(|(all, new)| *all = all.min(*new));
        max.iter_mut().zip(batch.max).for_each(|(all, new)| *all = all.max(*new));
        Ok(())
    }

    fn finish(&mut self) -> Result<InputRange> {
        let (min, max) = self.0.take().ok_or_else(|| Error::invalid("nothing was observed"))?;
        let low = min.iter().copied().fold(f32::INFINITY, f32::min);
        let high = max.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        Ok(InputRange { min, max, low, high })
    }
}

/// The same bits everywhere.
struct Uniform;
plugin!(Uniform, "uniform", Self);

impl BitPolicy for Uniform {
    fn assign(&self, request: &PolicyRequest, cx: &Context<'_>) -> Result<PolicyPlan> {
        cx.check()?;
        let bits = |allowed: &[u8]| {
            allowed.last().copied().ok_or_else(|| Error::invalid("the request allows no bits"))
        };
        let (weights, inputs) = (bits(&request.weight_bits)?, bits(&request.activation_bits)?);
        let steps = request.timesteps.len();
        let plan = |l: &taq_plugin::LayerSpec| {
            taq_plugin::taq_policy::LayerPlan::uniform(l.id.clone(), weights, inputs, steps)
        };
        Ok(PolicyPlan::new(request.layers.iter().map(plan).collect()))
    }
}

#[test]
fn a_rounder_of_layers() {
    assert_rounder_conforms(&RounderUnderTest::of_layers::<Nearest>("{}"));
}

#[test]
fn a_rounder_of_blocks() {
    assert_rounder_conforms(&RounderUnderTest::of_blocks::<Asking>("{}"));
}

#[test]
fn an_observer() {
    assert_observer_conforms(&ObserverUnderTest::of::<Extremes>("{}"));
}

#[test]
fn a_policy() {
    assert_policy_conforms(&PolicyUnderTest::of::<Uniform>("{}"));
}
