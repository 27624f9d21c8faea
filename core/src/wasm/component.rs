//! Components of the world `policy` in `sdk/wit/policy.wit`: the same contract, with strings for documents.

use wasmtime::component::types::{ComponentFunc, ComponentInstance, ComponentItem};
use wasmtime::component::{Component, Linker, Type, WasmStr};
use wasmtime::{Engine, Store, StoreContextMut};

use super::call::{Reply, State, charge};
use super::explain::violation;
use super::text::shown;

/// The WIT package.
pub(super) const PACKAGE: &str = "taq:policy";
/// The interface that the host offers.
pub(super) const IMPORT: &str = "taq:policy/log@1.0.0";
/// The interface that a policy exports.
pub(super) const EXPORT: &str = "taq:policy/bit-policy@1.0.0";

/// Whether what a component imports and exports has the right types. The error is a sentence for the user.
pub(super) fn check(component: &Component) -> Result<(), String> {
    let engine = component.engine();
    let ty = component.component_type();
    if let Some(import) = ty.get_import(engine, IMPORT) {
        let ComponentItem::ComponentInstance(interface) = import.ty else {
            return Err(format!("it imports `{IMPORT}`, which is an interface, as another kind"));
        };
        for (name, item) in interface.exports(engine) {
            let name = shown(name.as_bytes());
            if name != "write" {
                return Err(format!("it imports `{name}` of `{IMPORT}`; offered is `write`"));
            }
            if !matches!(&item.ty, ComponentItem::ComponentFunc(f) if is_write(f)) {
                return Err(format!(
                    "it imports `write` of `{IMPORT}` with another type; expected func(level: u8, line: string)"
                ));
            }
        }
    }
    let Some(ComponentItem::ComponentInstance(interface)) = ty.get_export(engine, EXPORT).map(|e| e.ty)
    else {
        return Err(format!("its export `{EXPORT}` is no interface"));
    };
    check_function(engine, &interface, "describe", "func() -> string", |f| {
        f.params().len() == 0 && matches!(result(f), Some(Type::String))
    })?;
    check_function(engine, &interface, "assign", "func(request: string) -> result<string, string>", |f| {
        let ok = match result(f) {
            Some(Type::Result(r)) => {
                matches!(r.ok(), Some(Type::String)) && matches!(r.err(), Some(Type::String))
            }
            _ => false,
        };
        ok && matches!(f.params().map(|(_, ty)| ty).collect::<Vec<_>>()[..], [Type::String])
    })
}

fn check_function(
    engine: &Engine,
    interface: &ComponentInstance,
    name: &str,
    expected: &str,
    fits: impl Fn(&ComponentFunc) -> bool,
) -> Result<(), String> {
    match interface.get_export(engine, name).map(|e| e.ty) {
        None => Err(format!("`{name}` is missing in its export `{EXPORT}`")),
        Some(ComponentItem::ComponentFunc(function)) if !function.async_() && fits(&function) => Ok(()),
        Some(_) => Err(format!("`{name}` in its export `{EXPORT}` has another type; expected {expected}")),
    }
}

fn is_write(function: &ComponentFunc) -> bool {
    let parameters: Vec<Type> = function.params().map(|(_, ty)| ty).collect();
    !function.async_() && matches!(parameters[..], [Type::U8, Type::String]) && result(function).is_none()
}

/// The type of what a function returns, if it returns one thing.
fn result(function: &ComponentFunc) -> Option<Type> {
    function.results().next()
}

/// Instantiates a component and calls one of its functions.
pub(super) fn reply(component: &Component, store: &mut Store<State>) -> wasmtime::Result<Reply> {
    let instance = linker(component.engine())?.instantiate(&mut *store, component)?;
    let function = |store: &mut Store<State>, name| {
        let interface = instance.get_export_index(&mut *store, None, EXPORT);
        let index = instance.get_export_index(&mut *store, interface.as_ref(), name);
        index.ok_or_else(|| violation(format!("`{name}` is missing")))
    };
    // A string longer than the limit of `Store::set_hostcall_fuel` is refused before it is copied.
    let Some(request) = store.data().request.clone() else {
        let index = function(store, "describe")?;
        let describe = instance.get_typed_func::<(), (String,)>(&mut *store, index)?;
        let (text,) = describe.call(&mut *store, ())?;
        return Ok(Reply::Document(text.into_bytes()));
    };
    let request = str::from_utf8(&request)?;
    let index = function(store, "assign")?;
    let assign = instance.get_typed_func::<(&str,), (Result<String, String>,)>(&mut *store, index)?;
    let (answer,) = assign.call(&mut *store, (request,))?;
    Ok(match answer {
        Ok(plan) => Reply::Document(plan.into_bytes()),
        Err(error) => Reply::Refusal(shown(error.as_bytes())),
    })
}

fn linker(engine: &Engine) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    linker.instance(IMPORT)?.func_wrap(
        "write",
        |mut store: StoreContextMut<'_, State>, (level, line): (u8, WasmStr)| {
            charge(&mut store, 0)?;
            if store.data_mut().takes_line() {
                let line = line.to_str(&store)?;
                store.data().log(level.into(), line.as_bytes());
            }
            Ok(())
        },
    )?;
    Ok(linker)
}
