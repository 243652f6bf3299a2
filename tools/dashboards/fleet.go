package main

const fleetUID = "svid-watchdog-fleet"

// fleet answers: does rotation work everywhere, where not, and may the CronJob
// go?
func fleet() dashboard {
	// The series of the chosen part of the fleet.
	const in = `{namespace=~"$namespace", workload=~"$workload"`
	const all = in + `}`
	// What Envoy uses; with tbot `issued` is another certificate.
	const used = in + `, stage=~"delivered|loaded|served"}`

	return newDashboard(fleetUID, "svid-watchdog / Fleet",
		"Does certificate rotation work in every pod, where does it not, and may the CronJob go?", "now-6h",
		[]variable{
			label("namespace", "Namespace", "").several(),
			label("workload", "Workload", `{namespace=~"$namespace"}`).several(),
		},

		section{"Now", []chart{
			number("Pods watched", "Pods with a watchdog that Prometheus scrapes.", "short", 4,
				query{`count(svid_watchdog_build_info` + all + `)`, "pods"}).below("text"),
			number("Healthy", "Pods in which every stage was seen and no problem holds, of all that are scraped.", "percentunit", 4,
				query{`sum(svid_watchdog_rotation_state` + in + `, state="healthy"}) / count(svid_watchdog_build_info` + all + `)`, "healthy"}).
				below("red").from(0.95, "orange").from(1, "green").share(),
			number("Broken", "Pods in which a critical problem holds: traffic fails, or will without help.", "short", 4,
				query{`sum(svid_watchdog_rotation_state` + in + `, state="broken"})`, "broken"}).from(1, "red"),
			number("Least time left", "The certificate that Envoy uses anywhere and that expires first.", "s", 4,
				query{`min(svid_watchdog_certificate_not_after_timestamp_seconds` + used + `) - time()`, "left"}).below("red").from(0, "text"),
			number("Verified rotations, one hour", "New certificates that went all the way to Envoy's TLS contexts in one life of Envoy, of all pods.", "short", 4,
				query{`sum(increase(svid_watchdog_verified_rotations_total` + all + `[1h]))`, "rotations"}).below("text"),
			number("Namespaces that can drop the CronJob", "For how many of the namespaces the gate is open.", "short", 4,
				query{`sum(namespace:svid_watchdog_cronjob_droppable:bool{namespace=~"$namespace"})`, "namespaces"}).below("text"),
		}},

		section{"State", []chart{
			series("Pods by state", "Unknown is not healthy: something could not be seen.", "short", 12,
				query{`sum by (state) (svid_watchdog_rotation_state` + all + `)`, "{{state}}"}).
				stacked().painted("healthy", "green").painted("degraded", "orange").painted("broken", "red").painted("unknown", "gray"),
			series("Share of the lifetime left, worst pod of each workload",
				"Of the certificate that Envoy uses. A healthy workload draws a saw: with a renewal each 20 minutes of an hour its lowest pod stays above two thirds, less what issuers date back. Zero is expired.", "percentunit", 12,
				query{`workload:svid_watchdog_certificate_remaining:ratio` + all, "{{namespace}}/{{workload}}"}),
			series("Rotations an hour, by stage",
				"New certificates seen at each stage. Where rotation works the lines lie on each other; the first that falls names the culprit: issued is the identity provider, delivered the SDS stream, loaded Envoy, served the listener.", "short", 12,
				query{`sum by (stage) (rate(svid_watchdog_rotations_total` + all + `[$__rate_interval])) * 3600`, "{{stage}}"}),
			series("Verified rotations an hour, by namespace", "What the gate counts.", "short", 12,
				query{`sum by (namespace) (rate(svid_watchdog_verified_rotations_total` + all + `[$__rate_interval])) * 3600`, "{{namespace}}"}),
		}},

		section{"Problems", []chart{
			table("By workload", "In how many pods of each workload each problem holds.", "Pods", 12,
				query{`sum by (namespace, workload, problem) (svid_watchdog_problem` + all + ` == 1)`, ""}, "namespace", "workload", "problem").
				orElse("No problem holds"),
			table("By node", "In how many pods of each node each problem holds. Many on one node: look at the identity provider there.", "Pods", 12,
				query{`sum by (node, problem) (svid_watchdog_problem` + all + ` == 1)`, ""}, "node", "problem").
				orElse("No problem holds"),
			series("Pods with a problem", "In how many pods each problem holds.", "short", 12,
				query{`sum by (problem) (svid_watchdog_problem` + all + ` == 1)`, "{{problem}}"}).stacked().orElse("No problem holds"),
			series("Updates that did not help, an hour",
				"Hollow updates change nothing: the server re-sends an old certificate. Rejected updates are those that Envoy refused.", "short", 12,
				query{`sum(rate(svid_watchdog_hollow_updates_total` + all + `[$__rate_interval])) * 3600`, "hollow"},
				query{`sum(rate(svid_watchdog_rejected_updates_total` + all + `[$__rate_interval])) * 3600`, "rejected"}),
			bars("The twenty pods with the least time left", "The share of the lifetime that is left of the certificate that Envoy uses.", "percentunit", 12,
				query{`bottomk(20, min by (namespace, pod) (
  (svid_watchdog_certificate_not_after_timestamp_seconds` + used + ` - time())
    / (svid_watchdog_certificate_not_after_timestamp_seconds` + used + ` - svid_watchdog_certificate_not_before_timestamp_seconds` + used + `)
))`, "{{namespace}}/{{pod}}"}).
				below("red").from(1.0/6, "orange").from(1.0/3, "green").share().leadingToPod().tall(),
			series("What Istio's agent will do at its next start", "Anything but external_sds is a danger that the next restart of istio-proxy sets off.", "short", 12,
				query{`sum by (mode) (svid_watchdog_identity_mode` + all + `)`, "{{mode}}"}).
				stacked().painted("external_sds", "green").painted("unknown", "gray").tall(),
		}},

		section{"May the CronJob go?", []chart{
			table("The gate", "1 where the namespace can drop the CronJob: docs/drop-the-cronjob.md.", "Can go", 6,
				query{`namespace:svid_watchdog_cronjob_droppable:bool{namespace=~"$namespace"}`, ""}, "namespace").
				called("0", "not yet", "orange").called("1", "can go", "green"),
			lanes("The gate and its two conditions", "Proven: every pod of the mesh is healthy and has verified its rotations. Undisturbed: nothing speaks against it at this moment; 24 hours of that, and proof, open the gate.", 9,
				query{`namespace:svid_watchdog_rotation_proven:bool{namespace=~"$namespace"}`, "{{namespace}}: proven"},
				query{`namespace:svid_watchdog_undisturbed:bool{namespace=~"$namespace"}`, "{{namespace}}: undisturbed"},
				query{`namespace:svid_watchdog_cronjob_droppable:bool{namespace=~"$namespace"}`, "{{namespace}}: can go"}).
				below("orange").from(1, "green").called("0", "no", "orange").called("1", "yes", "green"),
			table("Pods without proof", "Pods of the mesh that have not yet verified enough rotations in one life of Envoy: too young, not watched, or rotation does not work.", "Watched", 9,
				query{`pod:svid_watchdog_injected:bool{namespace=~"$namespace"} unless on (namespace, pod) (pod:svid_watchdog_rotation_proven:bool{namespace=~"$namespace"} == 1)`, ""}, "namespace", "pod").
				called("0", "no watchdog", "red").called("1", "yes", "text").orElse("Every pod has proven it"),
			series("Age of the youngest Envoy of each namespace",
				"How long every pod has gone without a restart. While the CronJob runs, this never gets beyond 45 minutes, and no evidence gathers.", "s", 24,
				query{`time() - max by (namespace) (svid_watchdog_envoy_start_timestamp_seconds` + all + `)`, "{{namespace}}"}),
		}},

		section{"What the watchdog costs", []chart{
			series("Share of Envoy's time spent on answers to the watchdog", "The dearest pod of each namespace. The budget is half a percent of one core of Envoy.", "percentunit", 12,
				query{`max by (namespace) (rate(svid_watchdog_envoy_admin_seconds_total` + all + `[$__rate_interval]))`, "{{namespace}}"}),
			series("Memory of the watchdog", "The largest of each namespace.", "bytes", 12,
				query{`max by (namespace) (process_resident_memory_bytes` + all + ` and on (namespace, pod, instance) svid_watchdog_build_info` + all + `)`, "{{namespace}}"}),
		}},
	)
}
