;; A bit policy for taq in WebAssembly's text format.
;;
;; The rule: weights get 4 bits; activations get 6, and 8 in the last quarter of the timesteps, where the image gets
;; its details. Inputs that come out of GELU are shifted. Change `$write_layer` to have a rule of your own.
;;
;; ABI version 1: docs/abi/policy-v1.md in taq's repository.

(module
  ;; ---- What the host offers, and what it expects ----

  (import "taq" "read_request" (func $read_request (param $to i32)))
  (import "taq" "write_response" (func $write_response (param $from i32) (param $length i32)))
  ;; There is also `log` with (level, from, length): 1 error, 2 warning, 3 information, 4 debugging.

  (func (export "taq_policy_abi_v1"))

  ;; ---- Memory: texts that end with a zero byte, the request at 1024, the response behind it. Every call gets a fresh
  ;; instance, so nothing is freed. ----

  (memory (export "memory") 1)

  (data (i32.const 0) "layers\00")
  (data (i32.const 16) "timesteps\00")
  (data (i32.const 32) "settings\00")
  (data (i32.const 48) "id\00")
  (data (i32.const 64) "post_gelu\00")
  (data (i32.const 80) "{\"format\":\"taq.policy_plan.v1\",\"layers\":[\00")
  (data (i32.const 144) "{\"id\":\00")
  (data (i32.const 160) ",\"weight_bits\":4,\"activation_bits\":[\00")
  (data (i32.const 208) "],\"shift\":true}\00")
  (data (i32.const 240) "],\"shift\":false}\00")
  (data (i32.const 272) ",\00")
  (data (i32.const 276) "6\00")
  (data (i32.const 280) "8\00")
  (data (i32.const 288) "]}\00")
  (data (i32.const 304) "{\"error\":\"the request has no layers or no timesteps\"}\00")
  (data (i32.const 384) "{\"error\":\"settings: this policy has none\"}\00")
  (data (i32.const 448)
    "{\"format\":\"taq.policy_info.v1\",\"name\":\"late-8-wat\",\"version\":\"0.1.0\","
    "\"summary\":\"Six bits for activations, eight in the last quarter of the timesteps.\"}\00")

  (global $request_end (mut i32) (i32.const 1024))
  (global $response (mut i32) (i32.const 1024))
  (global $response_end (mut i32) (i32.const 1024))

  ;; Makes sure that memory reaches up to `$end`.
  (func $reserve (param $end i32) (local $more i32)
    (local.set $more
      (i32.sub (i32.shr_u (i32.add (local.get $end) (i32.const 65535)) (i32.const 16)) (memory.size)))
    (if (i32.gt_s (local.get $more) (i32.const 0))
      (then
        (if (i32.eq (memory.grow (local.get $more)) (i32.const -1)) (then unreachable)))))

  ;; Appends the bytes from `$from` up to `$end` to the response.
  (func $put_bytes (param $from i32) (param $end i32) (local $length i32)
    (local.set $length (i32.sub (local.get $end) (local.get $from)))
    (call $reserve (i32.add (global.get $response_end) (local.get $length)))
    (memory.copy (global.get $response_end) (local.get $from) (local.get $length))
    (global.set $response_end (i32.add (global.get $response_end) (local.get $length))))

  ;; Appends a text.
  (func $put (param $text i32) (local $end i32)
    (local.set $end (local.get $text))
    (loop $next
      (if (i32.load8_u (local.get $end))
        (then
          (local.set $end (i32.add (local.get $end) (i32.const 1)))
          (br $next))))
    (call $put_bytes (local.get $text) (local.get $end)))

  ;; Ends a call: hands the response over.
  (func $respond
    (call $write_response
      (global.get $response) (i32.sub (global.get $response_end) (global.get $response))))

  ;; ---- Just enough JSON: what the host writes is valid, so this only finds its way in it. ----

  ;; The byte at `$at`; 0 behind the end of the request.
  (func $byte (param $at i32) (result i32)
    (if (result i32) (i32.lt_u (local.get $at) (global.get $request_end))
      (then (i32.load8_u (local.get $at)))
      (else (i32.const 0))))

  (func $skip_space (param $at i32) (result i32) (local $c i32)
    (loop $next
      (local.set $c (call $byte (local.get $at)))
      (if (i32.and (i32.ne (local.get $c) (i32.const 0)) (i32.le_u (local.get $c) (i32.const 32)))
        (then
          (local.set $at (i32.add (local.get $at) (i32.const 1)))
          (br $next))))
    (local.get $at))

  ;; From the opening quotes of a string to behind the closing ones.
  (func $skip_string (param $at i32) (result i32) (local $c i32)
    (loop $next
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (local.set $c (call $byte (local.get $at)))
      (if (i32.eq (local.get $c) (i32.const 92)) ;; a backslash: the next byte is not the end
        (then (local.set $at (i32.add (local.get $at) (i32.const 1)))))
      (br_if $next (i32.and (i32.ne (local.get $c) (i32.const 34)) (i32.ne (local.get $c) (i32.const 0)))))
    (i32.add (local.get $at) (i32.const 1)))

  ;; Whether a byte ends a number, true, false or null: white space , ] } or the end.
  (func $ends_word (param $c i32) (result i32)
    (i32.or
      (i32.or (i32.le_u (local.get $c) (i32.const 32)) (i32.eq (local.get $c) (i32.const 44)))
      (i32.or (i32.eq (local.get $c) (i32.const 93)) (i32.eq (local.get $c) (i32.const 125)))))

  ;; From the start of a value to behind it.
  (func $skip_value (param $at i32) (result i32) (local $depth i32) (local $c i32)
    (loop $next
      (local.set $c (call $byte (local.get $at)))
      (block $token
        (if (i32.eq (local.get $c) (i32.const 34)) ;; "
          (then
            (local.set $at (call $skip_string (local.get $at)))
            (br $token)))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        ;; [ and { differ in one bit, as ] and } do.
        (if (i32.eq (i32.or (local.get $c) (i32.const 32)) (i32.const 123))
          (then
            (local.set $depth (i32.add (local.get $depth) (i32.const 1)))
            (br $token)))
        (if (i32.eq (i32.or (local.get $c) (i32.const 32)) (i32.const 125))
          (then
            (local.set $depth (i32.sub (local.get $depth) (i32.const 1)))
            (br $token)))
        (br_if $token (local.get $depth))
        (loop $word
          (if (i32.eqz (call $ends_word (call $byte (local.get $at))))
            (then
              (local.set $at (i32.add (local.get $at) (i32.const 1)))
              (br $word)))))
      (br_if $next
        (i32.and
          (i32.ne (local.get $depth) (i32.const 0))
          (i32.lt_u (local.get $at) (global.get $request_end)))))
    (local.get $at))

  ;; The first item of an array or object at `$at`, or the one behind the item that ends at `$at`; 0 after the last.
  (func $next_item (param $at i32) (result i32) (local $c i32)
    (local.set $at (call $skip_space (local.get $at)))
    (local.set $c (call $byte (local.get $at)))
    (if (i32.or
          (i32.eq (i32.or (local.get $c) (i32.const 32)) (i32.const 123))
          (i32.eq (local.get $c) (i32.const 44)))
      (then (local.set $at (call $skip_space (i32.add (local.get $at) (i32.const 1))))))
    (local.set $c (call $byte (local.get $at)))
    (if (i32.or
          (i32.eqz (local.get $c))
          (i32.eq (i32.or (local.get $c) (i32.const 32)) (i32.const 125)))
      (then (return (i32.const 0))))
    (local.get $at))

  ;; Whether the string at `$at`, quotes included, is `$text`.
  (func $is (param $at i32) (param $text i32) (result i32) (local $c i32)
    (loop $next
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (local.set $c (i32.load8_u (local.get $text)))
      (if (i32.eqz (local.get $c))
        (then (return (i32.eq (call $byte (local.get $at)) (i32.const 34)))))
      (local.set $text (i32.add (local.get $text) (i32.const 1)))
      (br_if $next (i32.eq (call $byte (local.get $at)) (local.get $c))))
    (i32.const 0))

  ;; The value of `$key` in the object at `$object`; 0 if it has none.
  (func $find (param $object i32) (param $key i32) (result i32) (local $at i32) (local $value i32)
    (local.set $at (call $next_item (local.get $object)))
    (block $done
      (loop $next
        (br_if $done (i32.eqz (local.get $at)))
        (local.set $value ;; behind the key and its colon
          (call $skip_space
            (i32.add (call $skip_space (call $skip_value (local.get $at))) (i32.const 1))))
        (if (call $is (local.get $at) (local.get $key)) (then (return (local.get $value))))
        (local.set $at (call $next_item (call $skip_value (local.get $value))))
        (br $next)))
    (i32.const 0))

  (func $count (param $array i32) (result i32) (local $at i32) (local $n i32)
    (local.set $at (call $next_item (local.get $array)))
    (block $done
      (loop $next
        (br_if $done (i32.eqz (local.get $at)))
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (local.set $at (call $next_item (call $skip_value (local.get $at))))
        (br $next)))
    (local.get $n))

  ;; ---- The policy ----

  (func (export "describe") (result i32)
    (call $put (i32.const 448))
    (call $respond)
    (i32.const 0))

  ;; The plan of one layer: `$layer` is its object in the request.
  (func $write_layer (param $layer i32) (param $steps i32) (local $id i32) (local $gelu i32) (local $step i32)
    (local.set $id (call $find (local.get $layer) (i32.const 48)))
    (local.set $gelu (call $find (local.get $layer) (i32.const 64)))
    (call $put (i32.const 144))
    (call $put_bytes (local.get $id) (call $skip_value (local.get $id))) ;; with its quotes, as the host wrote it
    (call $put (i32.const 160))
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $step) (local.get $steps)))
        (if (local.get $step) (then (call $put (i32.const 272))))
        ;; 8 bits where 4 · step ≥ 3 · steps, else 6.
        (call $put
          (select (i32.const 280) (i32.const 276)
            (i32.ge_u
              (i32.mul (i32.const 4) (local.get $step))
              (i32.mul (i32.const 3) (local.get $steps)))))
        (local.set $step (i32.add (local.get $step) (i32.const 1)))
        (br $next)))
    ;; `true` begins with a t.
    (call $put
      (select (i32.const 208) (i32.const 240)
        (i32.and
          (i32.ne (local.get $gelu) (i32.const 0))
          (i32.eq (call $byte (local.get $gelu)) (i32.const 116))))))

  (func $refuse (param $error i32) (result i32)
    (call $put (local.get $error))
    (call $respond)
    (i32.const 1))

  (func (export "assign") (param $request_length i32) (result i32)
    (local $layers i32) (local $settings i32) (local $timesteps i32) (local $layer i32) (local $first i32)
    (global.set $request_end (i32.add (i32.const 1024) (local.get $request_length)))
    (global.set $response (global.get $request_end))
    (global.set $response_end (global.get $request_end))
    (call $reserve (global.get $request_end))
    (call $read_request (i32.const 1024))

    (local.set $layers (call $find (i32.const 1024) (i32.const 0)))
    (local.set $timesteps (call $find (i32.const 1024) (i32.const 16)))
    (local.set $settings (call $find (i32.const 1024) (i32.const 32)))
    (if (i32.or (i32.eqz (local.get $layers)) (i32.eqz (local.get $timesteps)))
      (then (return (call $refuse (i32.const 304)))))
    (if (local.get $settings)
      (then
        (if (call $next_item (local.get $settings))
          (then (return (call $refuse (i32.const 384)))))))

    (call $put (i32.const 80))
    (local.set $first (i32.const 1))
    (local.set $layer (call $next_item (local.get $layers)))
    (block $done
      (loop $next
        (br_if $done (i32.eqz (local.get $layer)))
        (if (i32.eqz (local.get $first)) (then (call $put (i32.const 272))))
        (local.set $first (i32.const 0))
        (call $write_layer (local.get $layer) (call $count (local.get $timesteps)))
        (local.set $layer (call $next_item (call $skip_value (local.get $layer))))
        (br $next)))
    (call $put (i32.const 288))
    (call $respond)
    (i32.const 0)))
