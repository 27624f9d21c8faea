//! The wire types of taq's bit policies.
//!
//! A *bit policy* is a pure function of one document: it reads a [`PolicyRequest`] (the layer table, the
//! timesteps, what was measured) and returns a [`PolicyPlan`] (how many bits each layer gets and when).
//! The same types serve policies that are linked in, loaded as native libraries, or run as WASM modules;
//! `taq_core` re-exports them.
//!
//! ```
//! use taq_policy::{LayerPlan, PolicyPlan, PolicyRequest};
//!
//! /// Eight bits for every activation, four for every weight.
//! fn assign(request: &PolicyRequest) -> PolicyPlan {
//!     let steps = request.timesteps.len();
//!     let layers = request.layers.iter().map(|l| LayerPlan::uniform(l.id.clone(), 4, 8, steps)).collect();
//!     PolicyPlan::new(layers)
//! }
//! # let request = PolicyRequest::new("toy", vec![], vec![]);
//! # assert!(assign(&request).layers.is_empty());
//! ```

pub mod guest;
mod info;
mod layer;
mod plan;
mod request;
pub mod testing;

pub use info::{INFO_FORMAT, PolicyError, PolicyInfo};
pub use layer::{BlockId, LayerId, LayerSpec, Role, Stream};
pub use plan::{LayerPlan, PLAN_FORMAT, PolicyPlan, ScaleSource};
pub use request::{LayerColumns, PolicyRequest, REQUEST_FORMAT, Sensitivity, Timestep};
