package main

const podUID = "svid-watchdog-pod"

// pod answers: where in its pipeline does a certificate of this pod stand?
func pod() dashboard {
	const in = `{namespace="$namespace", pod="$pod"`
	const all = in + `}`

	// left of the certificate at a stage.
	left := func(stage string) string {
		return `svid_watchdog_certificate_not_after_timestamp_seconds` + in + `, stage="` + stage + `"} - time()`
	}
	stage := func(name, title, description string) chart {
		return number(title, description, "s", 6, query{left(name), name}).below("red").from(0, "text").orElse("not seen")
	}

	return newDashboard(podUID, "svid-watchdog / Pod",
		"Where in its pipeline does a certificate of this pod stand: issued, delivered, loaded, served?", "now-3h",
		[]variable{
			label("namespace", "Namespace", ""),
			label("pod", "Pod", `{namespace="$namespace"}`),
		},

		section{"The pipeline: time left of the certificate at each stage", []chart{
			stage("issued", "Issued →", "The certificate that the identity provider hands out on the Workload API. tbot gives the watchdog another one than Envoy; SPIRE the same."),
			stage("delivered", "Delivered →", "The certificate that Envoy holds as SDS secret."),
			stage("loaded", "Loaded →", "The certificate that Envoy's live TLS contexts use."),
			stage("served", "Served", "The certificate that a peer is shown in a handshake, where the watchdog makes one."),
			series("Time left", "A healthy pod draws the same saw at each stage; a line that keeps falling while those before it rise names the stage that stopped. Below zero: expired.", "s", 16,
				query{`svid_watchdog_certificate_not_after_timestamp_seconds` + all + ` - time()`, "{{stage}}"}).tall(),
			bars("Share of the lifetime left", "Red: less than a sixth, the margin of certificate_expiring.", "percentunit", 8,
				query{`(svid_watchdog_certificate_not_after_timestamp_seconds` + all + ` - time())
  / (svid_watchdog_certificate_not_after_timestamp_seconds` + all + ` - svid_watchdog_certificate_not_before_timestamp_seconds` + all + `)`, "{{stage}}"}).
				below("red").from(1.0/6, "orange").from(1.0/3, "green").share().tall(),
		}},

		section{"The verdict", []chart{
			number("State", "The verdict in one word.", "short", 4,
				query{`svid_watchdog_rotation_state` + all + ` == 1`, "{{state}}"}).word().below("text"),
			number("At its next start Istio's agent will be in mode", "external_sds is what you want.", "short", 5,
				query{`svid_watchdog_identity_mode` + all + ` == 1`, "{{mode}}"}).word().below("text"),
			number("Identity", "The SPIFFE ID that is issued to this workload, or else the one that Envoy has.", "short", 11,
				query{`svid_watchdog_identity_info` + all, "{{spiffe_id}}"}).word().below("text"),
			number("Renewal interval", "Configured, or learned from the stream.", "s", 4,
				query{`svid_watchdog_rotation_interval_seconds` + all, "interval"}).below("text").orElse("not known yet"),
			lanes("Problems", "When each problem held, of those that held in the time that is shown.", 16,
				query{`svid_watchdog_problem` + all + ` and on (namespace, pod, problem) max_over_time(svid_watchdog_problem` + all + `[$__range]) == 1`, "{{problem}}"}).
				below("transparent").from(1, "red").called("0", "no", "transparent").called("1", "holds", "red").orElse("No problem held"),
			bars("Credential files", "All three together switch Istio's agent to files at its next start.", "short", 8,
				query{`svid_watchdog_credential_file_present` + all, "{{file}}"}).
				from(1, "red").share().called("0", "absent", "green").called("1", "present", "red"),
		}},

		section{"Rotation", []chart{
			series("New certificates in one hour, by stage", "Where rotation works the lines lie on each other; the first that falls names the stage that stopped.", "short", 8,
				query{`increase(svid_watchdog_rotations_total` + all + `[1h])`, "{{stage}}"}),
			series("Rotations and other updates in one hour", "Verified: they went all the way in one life of Envoy. Hollow updates changed nothing, rejected ones Envoy refused.", "short", 8,
				query{`increase(svid_watchdog_verified_rotations_total` + all + `[1h])`, "verified"},
				query{`increase(svid_watchdog_hollow_updates_total` + all + `[1h])`, "hollow"},
				query{`increase(svid_watchdog_rejected_updates_total` + all + `[1h])`, "rejected"}),
			series("Time since Envoy says that the secret was updated", "A hint only: an update may change nothing, and in the incident this looked fresh for ten hours.", "s", 8,
				query{`time() - svid_watchdog_secret_last_updated_timestamp_seconds` + all, "{{secret}}"}),
		}},

		section{"What is seen, and what it costs", []chart{
			lanes("Sources", "Whether the last attempt to read each source of evidence worked. A handshake that is not made is not there.", 8,
				query{`svid_watchdog_source_up` + all, "{{source}}"}).
				below("red").from(1, "green").called("0", "failed", "red").called("1", "works", "green"),
			series("Open SDS streams", "Requests that Envoy holds open on the SDS cluster; two are expected, for the certificate and the bundle.", "short", 8,
				query{`svid_watchdog_sds_streams` + all, "streams"}),
			series("Age of Envoy", "A line that drops to zero is a restart; rotations are verified within one life.", "s", 8,
				query{`time() - svid_watchdog_envoy_start_timestamp_seconds` + all, "Envoy"}),
			series("Time left of the trust bundle", "Of the authority that expires first.", "s", 8,
				query{`svid_watchdog_trust_bundle_not_after_timestamp_seconds` + all + ` - time()`, "{{stage}}"}),
			series("Share of Envoy's time spent on answers to the watchdog", "The budget is half a percent of one core of Envoy.", "percentunit", 8,
				query{`rate(svid_watchdog_envoy_admin_seconds_total` + all + `[$__rate_interval])`, "Envoy admin"}),
			series("Memory of the watchdog", "What the process holds.", "bytes", 8,
				query{`process_resident_memory_bytes` + all + ` and on (namespace, pod, instance) svid_watchdog_build_info` + all, "resident"}),
		}},
	)
}
